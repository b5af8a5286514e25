"""Tests of the driver: restarts of lost workers, errors for the user, identity of a training."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.files import file_sha256
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DataRefusedError, RelevanceError, RetryableError
from pipeline.storage.filesystem import write_json
from pipeline.training import driver
from pipeline.training.checkpoint_folder import drop_checkpoints, open_checkpoints
from pipeline.training.deepspeed_engine import deepspeed_config
from pipeline.training.plan import plan_training, trained_fingerprint
from pipeline.training.worker import WorkerSettings
from pipeline.training.worker_failures import PROGRAMMING_ERRORS, find_error, out_of_memory_error
from tests.support.linked_folders import link_away, refuses_link
from tests.support.planted import planted_config, write_planted


def test_user_error_is_found_inside_ray_errors() -> None:
    class WorkerGroupError(Exception):
        worker_failures = {1: RuntimeError("other"), 0: RuntimeError("outer")}

    WorkerGroupError.worker_failures[0].__cause__ = DataRefusedError("no row")
    found = find_error(WorkerGroupError(), (RelevanceError,))
    assert isinstance(found, DataRefusedError)
    assert find_error(RuntimeError("lost"), (RelevanceError, *PROGRAMMING_ERRORS)) is None
    WorkerGroupError.worker_failures[0].__cause__ = KeyError("a bug")
    assert isinstance(find_error(WorkerGroupError(), PROGRAMMING_ERRORS), KeyError)
    WorkerGroupError.worker_failures[0].__cause__ = torch.OutOfMemoryError("40 GiB")
    assert "lower training.micro_batch_tokens" in str(out_of_memory_error(WorkerGroupError()))


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path) -> RunConfig:
    write_planted(tmp_path, num_rows=8)
    return accepted(build_config(planted_config(tmp_path, str(tiny_llama)), "test"))


def accepted(config: RunConfig) -> RunConfig:
    """Return the config, all its rows accepted by the data gate."""
    shutil.copytree(config.judged_location, config.accepted_dir, dirs_exist_ok=True)
    return config


def changed(config: RunConfig, **blocks: Any) -> RunConfig:
    """Return the config with other blocks."""
    return build_config({**config.model_dump(mode="json"), **blocks}, "test")


def make_checkpoint(root: Path, step: int) -> Path:
    """Make a checkpoint that is whole by its manifest."""
    folder = root / f"step-{step:08d}"
    folder.mkdir()
    for name, content in (
        ("weights.safetensors", b"w"),
        ("optimizer-0.safetensors", b"o"),
        ("state.json", b"{}"),
    ):
        (folder / name).write_bytes(content)
    write_json(folder / "manifest.json", {path.name: file_sha256(path) for path in sorted(folder.iterdir())})
    return folder


def test_fingerprint_depends_on_the_training_inputs_only(config: RunConfig, tmp_path: Path) -> None:
    plan = plan_training(config)
    spread = {"num_workers": 4, "micro_batch_tokens": 64, "checkpoint_every_steps": 7}
    others: list[dict[str, Any]] = [
        {"training": {**config.training.model_dump(), **spread}},
        {"deepspeed": {"zero_stage": 3}},
    ]
    assert plan_training(changed(config, seed=6)).fingerprint != plan.fingerprint
    assert plan_training(changed(config, optimizer={"learning_rate": 0.02})).fingerprint != plan.fingerprint
    for blocks in others:
        assert plan_training(changed(config, **blocks)).fingerprint == plan.fingerprint
    dropping = {"adapter": {"lora_dropout": 0.1}}
    assert (
        plan_training(changed(config, **dropping)).fingerprint
        != plan_training(changed(config, **dropping, **others[0])).fingerprint
    )
    assert (
        plan_training(accepted(changed(config, scoring={"batch_tokens": 64}, name="other"))).fingerprint
        == plan.fingerprint
    )
    write_planted(tmp_path, num_rows=10)
    accepted(config)
    again = plan_training(config)
    assert again.fingerprint != plan.fingerprint
    assert again.data_digest != plan.data_digest


def test_checkpoints_of_another_training_are_never_removed(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_training(config)
    open_checkpoints(plan)
    whole = make_checkpoint(plan.checkpoint_dir, 1)
    with caplog.at_level(logging.INFO):
        open_checkpoints(plan)
    assert caplog.messages == ["  resuming from step-00000001"]
    with pytest.raises(ConfigError, match="seed was 5, is 6"):
        open_checkpoints(plan_training(changed(config, seed=6)))
    drop_checkpoints(plan_training(changed(config, seed=6)))
    assert whole.is_dir()
    drop_checkpoints(plan)
    assert not plan.checkpoint_dir.exists()


@pytest.mark.parametrize(("link", "below"), [("training/checkpoints", ""), ("training", "checkpoints")])
def test_linked_checkpoints_are_refused_and_keep_their_content(
    config: RunConfig, link: str, below: str
) -> None:
    plan = plan_training(config)
    kept = link_away(config.run_dir / link, below)
    with refuses_link():
        open_checkpoints(plan)
    with refuses_link():
        drop_checkpoints(plan)
    assert kept.is_file()


def test_checkpoints_refuse_other_rows(config: RunConfig, tmp_path: Path) -> None:
    plan = plan_training(config)
    open_checkpoints(plan)
    make_checkpoint(plan.checkpoint_dir, 1)
    write_planted(tmp_path, num_rows=10)
    with pytest.raises(
        ConfigError,
        match="digest of the accepted rows .*under another name, or remove .* to start from the beginning",
    ):
        open_checkpoints(plan_training(accepted(config)))
    assert (plan.checkpoint_dir / "step-00000001").is_dir()


class LostError(Exception):
    """Error that Ray raises for lost workers; `raised`: by their own code."""

    def __init__(self, raised: Exception | None = None) -> None:
        super().__init__("a worker died")
        self.worker_failures = {0: raised} if raised else {}


@pytest.fixture
def train(config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Return a function that trains with simulated workers.

    Each start ends as one of its arguments says: an error, a step whose checkpoint is written before
    workers are lost, or None. It returns the messages and the number of starts.
    """

    def run(*ends: Exception | int | None, stop: bool = False) -> tuple[list[str], int]:
        plan, remaining = plan_training(config), list(ends)
        open_checkpoints(plan)
        settings = WorkerSettings(
            config={},
            fingerprint="f",
            data_digest="d",
            encoded_dir=plan.dir,
            bundle_dir=plan.bundle_dir,
            checkpoint_dir=plan.checkpoint_dir,
            event_log_path=plan.event_log_path,
            stop_path=plan.dir / "stop",
        )
        if stop:
            settings.stop_path.touch()

        def run_workers(*_: Any) -> None:
            end = remaining.pop(0)
            if isinstance(end, int):
                make_checkpoint(plan.checkpoint_dir, end)
                raise LostError
            if end is not None:
                raise end

        monkeypatch.setattr(driver, "run_workers", run_workers)
        gauges: Any = SimpleNamespace(count_restart=lambda: None)
        caplog.clear()
        try:
            with caplog.at_level(logging.INFO):
                driver.train_with_restarts(settings, config.training, plan.dir, gauges)
        finally:
            run.starts = len(ends) - len(remaining)  # type: ignore[attr-defined]
        return caplog.messages, len(ends) - len(remaining)

    return run


def test_lost_workers_restart_three_times_from_one_checkpoint(train: Any) -> None:
    messages, starts = train(LostError(), LostError(), LostError(), None)
    assert starts == 4 and [message for message in messages if "3 of 3" in message]
    with pytest.raises(RetryableError, match="workers were lost .*run the same command again"):
        train(LostError(), LostError(), LostError(), LostError(), None)
    assert train.starts == 4


def test_restarts_are_unlimited_while_checkpoints_advance(train: Any) -> None:
    messages, starts = train(LostError(), LostError(), 10, LostError(), 20, 30, 40, LostError(), None)
    assert starts == 9 and not [message for message in messages if "3 of 3" in message]


@pytest.mark.parametrize(
    "error",
    [DataRefusedError("no row"), KeyError("a bug"), ConfigError("no such")],
    ids=["data", "bug", "config"],
)
def test_error_of_a_worker_s_own_code_is_not_retried(train: Any, error: Exception) -> None:
    with pytest.raises(type(error)):
        train(LostError(error), None)
    assert train.starts == 1


def test_repeated_error_is_fatal_unless_it_names_a_peer(
    train: Any,
) -> None:
    with pytest.raises(RuntimeError, match="sizes differ"):
        train(LostError(RuntimeError("sizes differ")), LostError(RuntimeError("sizes differ")), None)
    assert train.starts == 2
    closed = RuntimeError("gloo: Connection closed by peer")
    assert train(LostError(closed), LostError(closed), None)[1] == 3


def test_workers_lost_after_a_stop_request_are_not_restarted(train: Any) -> None:
    with pytest.raises(RetryableError):
        train(LostError(), None, stop=True)
    assert train.starts == 1


def test_full_cluster_error_names_the_workers_resources(train: Any) -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    with pytest.raises(
        RetryableError,
        match="no room for 2 workers of 1 CPUs each; wait until others are done, add nodes, or lower",
    ):
        train(ControllerError(WorkerGroupStartupTimeoutError(2)), None)
    assert train.starts == 1


def test_hang_reports_are_kept_without_a_restart_too(train: Any, config: RunConfig) -> None:
    folder = plan_training(config).dir
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"stuck-{number}.txt").write_text("in hang" * number)
    with pytest.raises(RetryableError):
        train(LostError(), stop=True)
    assert [path.name for path in folder.glob("hung-*")] == ["hung-1-1.txt"]


def test_missing_bundle_has_no_fingerprint(tmp_path: Path) -> None:
    assert trained_fingerprint(tmp_path / "nothing") is None


def test_unknown_target_module_is_refused_by_the_plan(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="its linears: .*q_proj"):
        plan_training(changed(config, adapter={"target_modules": ["qkv"]}))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_config_follows_the_run_config(config: RunConfig, stage: int) -> None:
    plain = changed(config, deepspeed={"zero_stage": stage})
    made = deepspeed_config(plain.deepspeed, plain.training, plain.optimizer)
    assert made["zero_optimization"] == {"stage": stage}
    assert made["gradient_clipping"] == plain.optimizer.gradient_clipping
    assert "bf16" not in made and "fp16" not in made
