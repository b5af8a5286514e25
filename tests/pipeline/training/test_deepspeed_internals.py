"""Tests of the private APIs of DeepSpeed."""

import json
import subprocess
import sys
from importlib.metadata import version

from pipeline.training.deepspeed_internals import TESTED_VERSION
from tests.support import deepspeed_probe
from tests.support.places import ROOT
from tests.support.servers import free_port


def test_private_apis_behave_as_in_the_tested_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", deepspeed_probe.__name__, str(free_port())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    failures = json.loads(done.stdout.splitlines()[-1])
    assert not failures, (
        f"DeepSpeed {version('deepspeed')} differs from the tested version {TESTED_VERSION}: {failures}; "
        "adapt pipeline/training/deepspeed_internals.py"
    )
