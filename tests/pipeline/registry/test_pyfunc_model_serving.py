"""Champion served over HTTP by `mlflow models serve`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import read_config
from tests.support.servers import free_port, wait_for_health, wait_for_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def served(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the champion."""
    root, config_path, finished = finished_run
    assert finished.returncode == 0, finished.stderr
    config = read_config(config_path, [])
    port, log = free_port(), tmp_path_factory.mktemp("served") / "log"
    words = [
        "models",
        "serve",
        "--model-uri",
        f"models:/{config.registry.model}@champion",
        "--env-manager",
        "local",
        "--port",
        str(port),
    ]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": config.tracking_uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with log.open("w") as file:
        command = [sys.executable, "-m", "mlflow", *words]
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_for_port(port, process)
        wait_for_health(f"http://127.0.0.1:{port}/ping", log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url: str, rows: list[dict[str, Any]]) -> tuple[int, Any]:
    """Post rows as `dataframe_records` JSON, as curl would, and return status and answer."""
    body = json.dumps({"dataframe_records": rows}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=60
        ) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_served_champion_labels_pairs_of_several_tasks_in_order(served: str) -> None:
    pairs = [{"task": task, "query": "red lamp", "ad_title": "red lamp"} for task in ("two", "three", "two")]
    status, answer = ask(served, pairs)
    assert status == 200
    first, second, third = answer["predictions"]
    assert first == third and second["label_name"] in ("bad", "fair", "good")
    assert first.keys() == {"probability", "label", "label_name", "expected_grade", "decision"}
    assert 0 <= first["probability"] <= 1 and first["decision"] in ("relevant", "irrelevant", "abstain")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "four", "query": "red lamp", "ad_title": "red lamp"}, "four"),
        ({"task": "two", "query": "red lamp"}, "ad_title"),
    ],
)
def test_invalid_pair_is_refused_with_its_reason(served: str, row: dict[str, Any], message: str) -> None:
    status, answer = ask(served, [row])
    assert status == 400 and message in answer
