"""The Ray cluster that a command starts for itself."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from jobs import cluster
from jobs.cluster import (
    INSECURE,
    MIN_OPEN_FILES,
    check_cluster_token,
    check_dashboard_token,
    check_gpus,
    given_address,
    has_node_for,
    is_dashboard_address,
    protect_own_cluster,
    ray_cluster,
)
from pipeline.errors import ConfigError, RetryableError
from pipeline.runtime import waiting
from tests.support.commands import RELEVANCE, check_refused
from tests.support.places import ROOT
from tests.support.planted import planted_config, write_config, write_planted

ADDRESSES = {
    "": None,
    "  ": None,
    "local": None,
    "auto": "auto",
    "head:6379": "head:6379",
    " 10.0.0.1:6379\n": "10.0.0.1:6379",
    "[::1]:6379": "[::1]:6379",
    "ray://head:10001": "ray://head:10001",
}
NO_ADDRESSES = (
    "head",
    ":6379",
    "head:",
    "head:port",
    "head:99999",
    "ray://head",
    "http://head:8265",
    "https://head",
    "redis://head:6379",
    "anyscale://cluster",
    "LOCAL",
)


def test_every_form_of_ray_address_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, address in ADDRESSES.items():
        monkeypatch.setenv("RAY_ADDRESS", text)
        assert given_address() == address
    monkeypatch.delenv("RAY_ADDRESS")
    assert given_address() is None
    for text in NO_ADDRESSES:
        monkeypatch.setenv("RAY_ADDRESS", text)
        with pytest.raises(ConfigError, match="write host:port .*"):
            given_address()
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ConfigError, match="`relevance submit --address`"):
        given_address()


OPEN_FILES = """
import resource, sys
from jobs.cluster import ray_cluster
from pipeline.runtime.ray_internals import cluster_requires_token
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    with ray_cluster(1):
        pass
except Exception as error:
    print(type(error).__name__, error)
print("ray" in sys.modules, resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_limit_of_open_files_is_raised_or_named_before_ray() -> None:
    limits = str(MIN_OPEN_FILES // 2), str(MIN_OPEN_FILES - 1)
    program = [sys.executable, "-c", OPEN_FILES, *limits]
    shown = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    error, state = shown.splitlines()
    assert error.startswith(f"RetryableError limit of open files too low for Ray: {MIN_OPEN_FILES - 1:,} of")
    assert "`ulimit -n`" in error
    assert state == f"False ({MIN_OPEN_FILES - 1}, {MIN_OPEN_FILES - 1})"


@pytest.mark.failures
def test_train_with_64_open_files_says_so_and_is_exit_3(tmp_path: Path, tiny_llama: Path) -> None:
    write_planted(tmp_path, num_rows=40, num_to_score=4)
    config = write_config(tmp_path / "c.yaml", planted_config(tmp_path, str(tiny_llama)))
    done = subprocess.run(
        [*RELEVANCE, "train", "--config", str(config)],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        capture_output=True,
        text=True,
        timeout=500,
    )
    check_refused(done, 3, f"limit of open files too low for Ray: 64 of at least {MIN_OPEN_FILES:,}")
    (path,) = (tmp_path / "runs" / "planted" / "records").iterdir()
    record = json.loads(path.read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 3)
    assert done.stderr.splitlines()[-1] == f"error: {record['reason']}"


@pytest.mark.e2e
def test_temporary_folder_too_long_for_sockets_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("scratch-" * 12)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(ConfigError, match="too long for sockets: .*; set RAY_TMPDIR"), ray_cluster(1):
        pass


def test_missing_gpus_are_a_config_error() -> None:
    check_gpus(2, 2)
    with pytest.raises(ConfigError, match="use_gpu asks for 2 and this machine has 0; set use_gpu to false"):
        check_gpus(0, 2)


@pytest.mark.e2e
def test_too_small_nodes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 9.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert has_node_for(4, 0)
    assert has_node_for(2, 1)
    assert not has_node_for(4, 1)
    assert not has_node_for(9, 0)


OPEN = ("head.invalid:6379", "10.0.0.1:6379", "[2001:db8::1]:6379", "ray://10.0.0.1:10001", "auto")
CLOSED_TO_OTHERS = ("127.0.0.1:6379", "localhost:6379", "[::1]:6379", "ray://127.0.0.1:10001")


@pytest.fixture
def open_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every cluster ask for no token."""
    monkeypatch.setattr(cluster, "cluster_requires_token", lambda *_: False)
    monkeypatch.setattr(cluster, "dashboard_requires_token", lambda *_: False)
    monkeypatch.setattr(cluster, "running_cluster_address", lambda: "10.0.0.1:6379")
    monkeypatch.delenv(INSECURE, raising=False)


def test_open_cluster_on_the_network_is_refused_unless_insecure(
    open_clusters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in OPEN:
        with pytest.raises(ConfigError, match="cluster without a token at .*, or add --insecure"):
            check_cluster_token(address)
    with pytest.raises(ConfigError, match="cluster without a token at http://10"):
        check_dashboard_token("http://10.0.0.1:8265")
    for address in CLOSED_TO_OTHERS:
        check_cluster_token(address)
    for address in ("http://localhost:8265", "http://[::1]:8265"):
        check_dashboard_token(address)
    monkeypatch.setenv(INSECURE, "1")
    check_dashboard_token("http://10.0.0.1:8265")
    for address in OPEN:
        check_cluster_token(address)


def test_tls_replaces_the_token_where_certificates_are_demanded(
    open_clusters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TLS_CA_CERT", "/ca.crt")
    for text in ("1", "true", "True"):
        monkeypatch.setenv("RAY_USE_TLS", text)
        check_cluster_token(OPEN[0])
    monkeypatch.delenv("RAY_TLS_CA_CERT")
    with pytest.raises(ConfigError, match="cluster without a token"):
        check_cluster_token(OPEN[0])


def test_form_of_a_dashboard_address_is_checked() -> None:
    good = ("http://head:8265", "https://head", "http://[::1]:8265/ray")
    bad = ("head:8265", "http://head:82x5", "http://", "http://[::1", "http://head:99999", "ftp://head:8265")
    assert [is_dashboard_address(address) for address in good + bad] == [True] * 3 + [False] * 6


def test_refused_token_and_version_are_config_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import AuthenticationError

    refusals = {
        "access refused by Ray on this machine: .*; set RAY_AUTH_MODE=token": AuthenticationError("no token"),
        "versions of Ray or Python differ": RuntimeError("Version mismatch: The cluster was started with:"),
    }
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for words, error in refusals.items():
        monkeypatch.setattr("ray.init", Mock(side_effect=error))
        with pytest.raises(ConfigError, match=words), ray_cluster(1):
            pass


def test_token_that_looks_like_no_answer_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionError("Failed to connect")))
    monkeypatch.setattr(cluster, "check_reachable", lambda _: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for is_refused, error in ((True, ConfigError), (False, RetryableError)):
        monkeypatch.setattr(cluster, "cluster_refuses_token", lambda *_, refused=is_refused: refused)
        with pytest.raises(error), ray_cluster(1):
            pass


def test_sigterm_while_ray_starts_interrupts_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as ray.init does
        os.kill(os.getpid(), signal.SIGTERM)

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr("ray.init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        with pytest.raises(KeyboardInterrupt), ray_cluster(1):
            pass
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_own_cluster_has_a_token_unless_the_user_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", INSECURE):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    protect_own_cluster()
    assert "RAY_AUTH_MODE" not in os.environ, "Ray sets it, and reads it again"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    protect_own_cluster()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64, "an empty variable is no token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine" * 8)
    protect_own_cluster()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine" * 8
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="without a token on this machine; .*unset RAY_AUTH_MODE, or add"):
        protect_own_cluster()
    monkeypatch.setenv(INSECURE, "1")
    protect_own_cluster()


def test_credentials_in_an_address_are_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (
        "ray://alice:s3cr3t@head:10001",
        "alice:s3cr3t@head:6379",
        "http://s3cr3t@head:8265",
        "ray://alice:x's3cr3t@head:10001",
        "ray://alice/x:s3cr3t@head:10001",
        "alice:x s3cr3t@head:6379",
        "//alice:s3cr3t@head:6379",
        "ray:/alice:s3cr3t@head:6379",
        "head:6379#password=s3cr3t",
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(
            ConfigError, match="RAY_ADDRESS holds an account .*RAY_AUTH_TOKEN_PATH"
        ) as refused:
            given_address()
        assert "s3cr3t" not in str(refused.value)


PROGRAM = """
import contextlib
from jobs.cluster import ray_cluster
from pipeline.runtime.ray_internals import cluster_requires_token
with ray_cluster(3):
    import psutil, ray
    running = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            running.append(" ".join(child.cmdline()))
    assert any("raylet" in command for command in running), running
    assert cluster_requires_token(ray.get_runtime_context().gcs_address, 20)
    print("CPUs", int(ray.cluster_resources()["CPU"]))
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Folder in which Ray keeps its notes of clusters; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.e2e
def test_other_cluster_on_this_machine_is_not_joined(ray_folder: Path) -> None:
    (ray_folder / "ray").mkdir()
    (ray_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")  # as `ray start` leaves it
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_TMPDIR": str(ray_folder)
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 3


def test_slow_start_of_ray_is_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(**settings: object) -> None:
        time.sleep(0.5)
        raise TimeoutError("too slow")

    monkeypatch.setattr(waiting, "FIRST_S", 0.05)
    monkeypatch.setattr("ray.init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with caplog.at_level("INFO"), pytest.raises(RetryableError, match="did not start"), ray_cluster(1):
        pass
    assert "waiting for Ray to start on this machine" in caplog.text
