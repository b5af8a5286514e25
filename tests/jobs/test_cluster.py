"""The Ray cluster that a command starts for itself."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster import check_gpus, no_node_for
from pipeline.errors import ConfigError
from tests.support.places import ROOT

pytestmark = pytest.mark.e2e


def test_gpus_that_a_machine_has_not_are_an_error_of_the_config_and_not_waited_for() -> None:
    check_gpus(2, 2)
    with pytest.raises(
        ConfigError, match="use_gpu asks for 2 GPUs and this machine has 0; set use_gpu to false"
    ):
        check_gpus(0, 2)


def test_a_cluster_whose_nodes_are_too_small_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = [(True, {"CPU": 4.0}), (True, {"CPU": 2.0, "GPU": 1.0}), (False, {"CPU": 9.0})]
    monkeypatch.setattr(
        "ray.nodes", lambda: [{"Alive": alive, "Resources": found} for alive, found in resources]
    )
    assert [no_node_for(*each) for each in ((4, 0), (2, 1), (4, 1), (9, 0))] == [False, False, True, True]


PROGRAM = """
import contextlib
from jobs.cluster import ray_cluster
with ray_cluster(3):
    import psutil, ray
    running = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            running.append(" ".join(child.cmdline()))
    assert any("raylet" in one for one in running), running
    assert not any("log_monitor.py" in one for one in running), running
    print("CPUs", int(ray.cluster_resources()["CPU"]))
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps what it knows of clusters; a short name, for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_that_somebody_else_has_started_on_this_machine_is_left_alone(ray_folder: Path) -> None:
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
