"""What MLflow is told of a training, in a real store."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.console import Console
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.registry import run_tracker as tracking
from pipeline.registry.mlflow_client import mlflow_client
from pipeline.registry.run_tracker import RunTracker
from tests.support.planted import planted_config, write_planted

STEP = {
    "step": 1,
    "loss": 0.5,
    "learning_rate": 0.01,
    "rows_per_s": 8.0,
    "tokens_per_s": 80.0,
    "gradient_norm": 1.0,
    "mfu": 0.3,
    "tokens": 10,
    "seconds": {"forward": 0.1},
    "task_losses": {"two": 0.4},
    "group_gradient_norms": {"heads": 0.2},
}
EVALUATION = {
    "evaluated_after": 1,
    "tasks": {"two": {"rows": 9, "pr_auc": 0.8, "roc_auc": 0.7, "log_loss": 0.6, "brier": 0.2}},
    "macro_pr_auc": 0.8,
    "macro_log_loss": 0.6,
}


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
    """A training that was stopped after a step, and went on."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tracking, "SYSTEM_EVERY_S", 0.2)
    ids = []
    for number in (1, 2):
        tracker = RunTracker(config, "f" * 64, "digest", Console(err=io.StringIO()).say)
        tracker.log_step(STEP | {"step": number})
        tracker.log_evaluation(EVALUATION | {"evaluated_after": number})
        time.sleep(1.5)
        tracker.finish("KILLED" if number == 1 else "FINISHED")
        ids.append(tracker.run_id)
    patch.undo()
    assert ids[0] == ids[1]
    return mlflow_client(config).get_run(ids[0])


def test_settings_are_parameters_by_their_names(run: Any) -> None:
    params = run.data.params
    assert (params["optimizer.learning_rate"], params["adapter.rank"], params["deepspeed.zero_stage"]) == (
        "0.01",
        "8",
        "2",
    )
    assert json.loads(params["tasks"])[0]["name"] == "two"


def test_the_data_s_digest_and_verdict_are_tags(run: Any) -> None:
    assert (run.data.tags["data_digest"], run.data.tags["data_gate"], run.data.tags["fingerprint"]) == (
        "digest",
        "passed",
        "f" * 64,
    )


def test_one_run_holds_the_steps_and_evaluations_of_both_commands(run: Any, config: RunConfig) -> None:
    client = mlflow_client(config)
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


def test_the_load_of_the_machine_is_followed(run: Any) -> None:
    assert run.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_config_environment_and_verdict_are_artifacts(run: Any, config: RunConfig, tmp_path: Path) -> None:
    client = mlflow_client(config)
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


def test_a_store_without_room_for_files_still_gets_the_steps(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_artifacts(*_: Any, **__: Any) -> None:
        raise OSError("no artifact store")

    monkeypatch.setattr("mlflow.MlflowClient.log_dict", no_artifacts)
    said = io.StringIO()
    tracker = RunTracker(config, "d" * 64, "digest", Console(err=said).say)
    tracker.log_step(STEP)
    tracker.finish("FINISHED")
    run = mlflow_client(config).get_run(tracker.run_id)
    assert (
        said.getvalue().count("MLflow takes no files (OSError)") == 1
        and "stopped answering" not in said.getvalue()
    )
    assert (run.data.metrics["loss"], run.data.tags["data_gate"], run.info.status) == (
        0.5,
        "passed",
        "FINISHED",
    )


def test_a_store_that_fails_later_is_told_once_and_training_goes_on(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    tracker = RunTracker(config, "e" * 64, "digest", Console(err=said).say)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tracker.client, "log_batch", broken)
    for _ in range(3):
        tracker.log_step(STEP)
        tracker.send()
    tracker.finish("FINISHED")
    assert said.getvalue().count("MLflow stopped answering (OSError). Training goes on without it") == 1


def test_a_store_that_was_away_gets_what_it_missed(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, client = io.StringIO(), mlflow_client(config)
    monkeypatch.setattr(tracking, "SEND_EVERY_S", 0.0)
    monkeypatch.setattr(tracking, "RETRY_EVERY_S", 0.0)
    with monkeypatch.context() as away:

        def broken(*_: Any, **__: Any) -> None:
            raise OSError("away")

        away.setattr("mlflow.MlflowClient.search_experiments", broken)
        tracker = RunTracker(config, "c" * 64, "digest", Console(err=said).say)
        tracker.log_step(STEP)
        assert tracker.run_id is None
    for number in (2, 3):
        tracker.log_step(STEP | {"step": number})
    with monkeypatch.context() as away:
        away.setattr(tracker.client, "log_batch", broken)
        for number in (4, 5):
            tracker.log_step(STEP | {"step": number})
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    assert [metric.step for metric in client.get_metric_history(tracker.run_id, "loss")] == [1, 2, 3, 4, 5]
    assert (run.info.status, run.data.tags["data_gate"]) == ("FINISHED", "passed")
    told = ("Training goes on without it", "MLflow answers again and has the figures that it missed")
    assert [said.getvalue().count(words) for words in told] == [2, 2]


def test_what_waits_for_a_store_is_bounded_and_the_store_is_not_asked_at_every_step(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SEND_EVERY_S", 0.0)
    monkeypatch.setattr(tracking, "MAX_WAITING", 30)
    asked = []

    def broken(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise OSError("away")

    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", broken)
    tracker = RunTracker(config, "b" * 64, "digest", Console(err=io.StringIO()).say)
    for number in range(20):
        tracker.log_step(STEP | {"step": number})
    assert len(asked) == 1 and len(tracker.waiting) == 30 and tracker.waiting[-1].step == 19
    tracker.finish("FAILED")
    assert len(asked) == 2
