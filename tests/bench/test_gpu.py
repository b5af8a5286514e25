"""The script for a GPU runs in tiny sizes without one, so that it is ready when one is at hand."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT


@pytest.mark.e2e
def test_gpu_script_prints_every_section() -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [ROOT / "tests" / "bench" / "gpu.sh"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"] == "cpu" and found["evaluation"]["within"]
    for section in ("step", "mfu", "scoring", "evaluation", "packing"):
        assert isinstance(found[section], dict) and found[section], section
