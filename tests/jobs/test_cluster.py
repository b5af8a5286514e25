"""The Ray cluster that a command starts for itself."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PROGRAM = """
from jobs.cluster import ray_cluster
with ray_cluster(3):
    import ray
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
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": str(ray_folder)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 3
