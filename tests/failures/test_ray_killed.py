"""`relevance train` and `score` whose Ray is killed: a sentence and exit 3, and the same command goes on."""

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime.run_record import read_records
from tests.failures.support.train_command import TIMEOUT_S, actors
from tests.support.champion import write_champion
from tests.support.commands import RELEVANCE, last_json
from tests.support.planted import planted_config, write_config, write_planted

pytestmark = pytest.mark.e2e

WORKERS = {"train": "RayTrainWorker", "score": "ray::MapWorker"}


def _write_world(root: Path, command: str, tiny_llama: Path) -> Path:
    if command == "score":
        return write_champion(root, tiny_llama)[0]
    write_planted(root)
    return write_config(root / "config.yaml", planted_config(root, str(tiny_llama)))


def _wait_for_workers(process: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
    """Return all processes of the command once its workers run."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not actors(process, kind):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s, "no worker in time"
        time.sleep(0.02)
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.failures
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
@pytest.mark.parametrize("command", ["train", "score"])
def test_killed_ray_ends_the_command_with_3_and_no_orphans(
    tmp_path: Path, tiny_llama: Path, command: str, victim: str
) -> None:
    config = _write_world(tmp_path, command, tiny_llama)
    words = [*RELEVANCE, command, "--config", str(config)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = _wait_for_workers(process, WORKERS[command])
    for killed in processes:
        if killed.name() == victim:
            killed.kill()
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (3, ""), err
    record = read_records(tmp_path / "runs" / "planted")[0]
    assert (record.state, record.exit_code) == ("failed", 3)
    assert err.splitlines()[-1] == f"error: {record.reason}"
    assert "Traceback" not in err and "run the same command again" in err
    assert not [left for left in processes if left.is_running()]
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert last_json(again)["run_id"] != record.run_id
