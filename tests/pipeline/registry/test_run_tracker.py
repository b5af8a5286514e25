"""Tracking of a training in a real MLflow store."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.registry import run_tracker
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.run_tracker import RunTracker
from tests.support.planted import planted_config, write_planted
from tests.support.training_events import make_evaluation, make_step


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> RunConfig:
    root = tmp_path_factory.mktemp("tracked")
    write_planted(root, num_rows=8)
    config = build_config(planted_config(root, str(tiny_llama)), "test")
    config.validation_dir.mkdir(parents=True)
    (config.validation_dir / "report.json").write_text(json.dumps({"passed": True, "tasks": {}}))
    return config


@pytest.fixture(scope="module")
def run(config: RunConfig) -> Any:
    """Return the MLflow run of a training that was stopped after a step and resumed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(run_tracker, "SYSTEM_EVERY_S", 0.2)
    ids = []
    for number in (1, 2):
        tracker = RunTracker(config, "f" * 64, "digest")
        tracker.log_step(make_step(number))
        tracker.log_evaluation(make_evaluation(number))
        time.sleep(1.5)
        tracker.finish("KILLED" if number == 1 else "FINISHED")
        ids.append(tracker.run_id)
    patch.undo()
    assert ids[0] == ids[1]
    return connect_mlflow(config.tracking_uri).get_run(ids[0])


def test_settings_are_logged_as_parameters(run: Any) -> None:
    params = run.data.params
    assert (params["optimizer.learning_rate"], params["adapter.rank"], params["deepspeed.zero_stage"]) == (
        "0.01",
        "8",
        "2",
    )
    assert json.loads(params["tasks"])[0]["name"] == "two"


def test_data_digest_and_gate_verdict_are_tags(run: Any) -> None:
    assert (run.data.tags["data_digest"], run.data.tags["data_gate"], run.data.tags["fingerprint"]) == (
        "digest",
        "passed",
        "f" * 64,
    )


def test_resumed_training_continues_its_run(run: Any, config: RunConfig) -> None:
    client = connect_mlflow(config.tracking_uri)
    assert run.info.status == "FINISHED"
    for name in (
        "loss",
        "loss_two",
        "seconds_forward",
        "gradient_norm_heads",
        "valid_macro_pr_auc",
        "valid_pr_auc_two",
        "valid_log_loss_two",
    ):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2], name


def test_machine_load_is_logged(run: Any) -> None:
    assert run.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_config_environment_and_verdict_are_artifacts(run: Any, config: RunConfig, tmp_path: Path) -> None:
    client = connect_mlflow(config.tracking_uri)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {
        "config.yaml",
        "environment.json",
        "data_gate.json",
    }
    read = {
        name: Path(client.download_artifacts(run.info.run_id, name, str(tmp_path))).read_text()
        for name in ("config.yaml", "environment.json")
    }
    assert json.loads(read["environment.json"])["libraries"]["torch"].startswith("2.")
    (tmp_path / "again.yaml").write_text(read["config.yaml"])
    from pipeline.config.loading import read_config

    assert read_config(tmp_path / "again.yaml") == config


def test_store_without_artifacts_still_gets_steps(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_artifacts(*_: Any, **__: Any) -> None:
        raise OSError("no artifact store")

    monkeypatch.setattr("mlflow.MlflowClient.log_dict", no_artifacts)
    tracker = RunTracker(config, "d" * 64, "digest")
    tracker.log_step(make_step())
    tracker.finish("FINISHED")
    run = connect_mlflow(config.tracking_uri).get_run(tracker.run_id)
    assert (
        caplog.text.count("MLflow takes no files (OSError)") == 1 and "stopped answering" not in caplog.text
    )
    assert (run.data.metrics["loss"], run.data.tags["data_gate"], run.info.status) == (
        0.5,
        "passed",
        "FINISHED",
    )


def test_failing_store_is_reported_once(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = RunTracker(config, "e" * 64, "digest")

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    caplog.set_level("INFO")

    monkeypatch.setattr(tracker.client, "log_batch", broken)
    for _ in range(3):
        tracker.log_step(make_step())
        tracker.send()
    tracker.finish("FINISHED")
    assert caplog.text.count("MLflow stopped answering (OSError). Training goes on without it") == 1
    assert "MLflow lacks the last" in caplog.text and "answers again" not in caplog.text


def test_returning_store_gets_missed_metrics(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = connect_mlflow(config.tracking_uri)
    monkeypatch.setattr(run_tracker, "SEND_EVERY_S", 0.0)
    monkeypatch.setattr(run_tracker, "RETRY_EVERY_S", 0.0)
    with monkeypatch.context() as away:

        def broken(*_: Any, **__: Any) -> None:
            raise OSError("away")

        away.setattr("mlflow.MlflowClient.search_experiments", broken)
        tracker = RunTracker(config, "c" * 64, "digest")
        tracker.log_step(make_step())
        assert tracker.run_id is None
    for number in (2, 3):
        tracker.log_step(make_step(number))
    with monkeypatch.context() as away:
        away.setattr(tracker.client, "log_batch", broken)
        for number in (4, 5):
            tracker.log_step(make_step(number))
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    assert [metric.step for metric in client.get_metric_history(tracker.run_id, "loss")] == [1, 2, 3, 4, 5]
    assert (run.info.status, run.data.tags["data_gate"]) == ("FINISHED", "passed")
    messages = ("Training goes on without it", "MLflow answers again and has the metrics that it missed")
    assert [caplog.text.count(message) for message in messages] == [2, 2]


def test_queue_is_bounded_and_retries_are_rare(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tracker, "SEND_EVERY_S", 0.0)
    monkeypatch.setattr(run_tracker, "MAX_WAITING", 30)
    requests = []

    def broken(*_: Any, **__: Any) -> None:
        requests.append(1)
        raise OSError("away")

    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", broken)
    tracker = RunTracker(config, "b" * 64, "digest")
    for number in range(20):
        tracker.log_step(make_step(number))
    assert len(requests) == 1 and len(tracker.waiting) == 30 and tracker.waiting[-1].step == 19
    tracker.finish("FAILED")
    assert len(requests) == 2
