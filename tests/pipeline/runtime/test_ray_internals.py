"""Private parts of Ray: an upgrade that changes one fails here with the name of the part."""

import contextlib
import inspect
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from pipeline.errors import ConfigError
from pipeline.runtime.ray_internals import (
    TESTED_VERSION,
    cluster_refuses_token,
    cluster_requires_token,
    create_job_client,
    dashboard_requires_token,
    disable_sigint_handler,
    is_missing_agent,
    is_socket_path_too_long,
    is_startup_timeout,
    is_version_mismatch,
    running_cluster_address,
    system_temp_dir,
)
from tests.support.servers import ProxyFaults, proxy

CHANGED = (
    f"{{part}} has changed in Ray {ray.__version__} (tested with {TESTED_VERSION}); "
    "adapt pipeline/runtime/ray_internals.py"
)


def test_sigint_handler_is_disabled_and_callbacks_stay() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer: Any = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    handler = getattr(trainer, "_register_sigint_handler", None)
    assert callable(handler), CHANGED.format(part="TorchTrainer._register_sigint_handler")
    assert list(inspect.signature(handler).parameters) == ["controller"], CHANGED.format(
        part="the signature of TorchTrainer._register_sigint_handler"
    )
    callbacks = [type(callback) for callback in trainer._create_default_callbacks()]
    disable_sigint_handler(trainer)
    assert trainer._register_sigint_handler(None) is None
    assert [type(callback) for callback in trainer._create_default_callbacks()] == callbacks


def test_startup_timeout_is_recognised() -> None:
    from ray.train import ControllerError

    try:
        from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    except ImportError:
        pytest.fail(CHANGED.format(part="WorkerGroupStartupTimeoutError"))
    timeout = WorkerGroupStartupTimeoutError(2)
    assert is_startup_timeout(timeout)
    assert is_startup_timeout(ControllerError(timeout)), CHANGED.format(
        part="ControllerError.controller_failure"
    )
    assert not is_startup_timeout(RuntimeError("other"))


def test_job_client_gives_up_on_a_silent_head_node() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_s = time.monotonic()
        with pytest.raises((ConnectionError, OSError, RuntimeError)):
            create_job_client(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.5)
        assert time.monotonic() - started_s < 20, CHANGED.format(part="JobSubmissionClient._do_request")


def test_missing_agent_is_recognised_by_the_text_of_ray() -> None:
    from ray.dashboard.modules.job import job_head

    text = "No available agent"
    assert text in Path(job_head.__file__).read_text(), CHANGED.format(part=f"the error text {text!r}")
    assert is_missing_agent(RuntimeError(f"Request failed with status code 500: {text} to submit job"))
    assert not is_missing_agent(RuntimeError("The job is too large"))


def test_long_socket_path_is_recognised_by_the_text_of_ray(tmp_path: Path) -> None:
    from ray._private import utils

    text = "AF_UNIX path length"
    assert text in Path(utils.__file__).read_text(), CHANGED.format(part=f"the error text {text!r}")
    assert is_socket_path_too_long(OSError(f"{text} cannot exceed 107 bytes"))
    assert not is_socket_path_too_long(OSError("No space left on device"))


def test_sessions_lie_below_the_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert system_temp_dir() == str(tmp_path), CHANGED.format(part="get_default_system_temp_dir")


@contextlib.contextmanager
def _grpc_server(status: grpc.StatusCode) -> Iterator[str]:
    """Answer every request with a status; yield host:port."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if status is not grpc.StatusCode.OK:
            context.abort(status, "made up")
        return b""

    handler = grpc.unary_unary_rpc_method_handler(answer)
    methods = {"NodeInfoGcsService": "CheckAlive", "RayletDriver": "ClusterInfo"}
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(f"ray.rpc.{service}", {method: handler})
            for service, method in methods.items()
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_cluster_is_asked_for_its_token_without_one() -> None:
    for status, is_required in ((grpc.StatusCode.OK, False), (grpc.StatusCode.UNAUTHENTICATED, True)):
        with _grpc_server(status) as place:
            assert cluster_requires_token(place, 20) is is_required
            assert cluster_requires_token(f"ray://{place}", 20) is is_required
            assert cluster_refuses_token(place, 20) is is_required
    with _grpc_server(grpc.StatusCode.UNAVAILABLE) as place, pytest.raises(ConnectionError):
        cluster_requires_token(place, 20)


def test_methods_asked_without_a_token_are_those_of_ray() -> None:
    from ray.core.generated import gcs_service_pb2, ray_client_pb2

    for module, service, method in (
        (gcs_service_pb2, "NodeInfoGcsService", "CheckAlive"),
        (ray_client_pb2, "RayletDriver", "ClusterInfo"),
    ):
        found = module.DESCRIPTOR.services_by_name.get(service)
        assert found is not None and found.full_name == f"ray.rpc.{service}", CHANGED.format(part=service)
        assert method in found.methods_by_name, CHANGED.format(part=f"{service}.{method}")


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (200, b'{"authentication_mode": "token"}', True),
        (200, b'{"authentication_mode": "disabled"}', False),
        (401, b"", True),
        (200, b"<p>a page of something else</p>", ConfigError),
        (200, b"{}", ConfigError),
        (404, b"", ConfigError),
        (503, b"", OSError),
    ],
)
def test_dashboard_is_asked_for_its_mode(status: int, content: bytes, outcome: Any) -> None:
    faults = ProxyFaults()
    faults.status, faults.content = status, content
    with proxy("http://127.0.0.1:9", faults) as address:
        if isinstance(outcome, bool):
            assert dashboard_requires_token(address, 20) is outcome
        else:
            with pytest.raises(outcome):
                dashboard_requires_token(address, 20)
    assert faults.requests == [("GET", "/api/authentication_mode")]


def test_port_of_something_else_is_no_dashboard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for answer, error in ((b"SSH-2.0-OpenSSH_9\r\n", ConfigError), (b"", ConnectionError)):
            thread = threading.Thread(target=_answer_once, args=(server, answer))
            thread.start()
            with pytest.raises(error):
                dashboard_requires_token(f"http://127.0.0.1:{server.getsockname()[1]}", 20)
            thread.join()
    with pytest.raises(ConfigError, match="not a dashboard of Ray: http://head:82x5"):
        dashboard_requires_token("http://head:82x5", 20)


def _answer_once(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_version_mismatch_is_found_by_its_text() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": "1.0", "python_version": "3.8.0"}, "here")
    assert is_version_mismatch(raised.value), CHANGED.format(part="check_version_info")
    assert not is_version_mismatch(RuntimeError("something else"))


def test_address_of_a_running_cluster_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", list)  # of this machine's other clusters
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert running_cluster_address() == "10.0.0.1:6379"
