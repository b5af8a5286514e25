"""The driver's side of training: following what workers write, telling what ended them."""

import json
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
from pipeline.training import driver as trainer
from pipeline.training.checkpoint_folder import drop_checkpoints, open_checkpoints
from pipeline.training.deepspeed_engine import deepspeed_config
from pipeline.training.event_log import LiveFollower
from pipeline.training.plan import plan_training, trained_fingerprint
from pipeline.training.worker_failures import BUGS, find_error, out_of_memory
from tests.support.planted import planted_config, write_planted


def test_the_follower_hands_on_every_line_once_and_in_order_even_those_written_in_parts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text("")
    seen: list[dict[str, Any]] = []
    with LiveFollower(path, seen.append, every_s=0.01), path.open("a") as file:
        for step in range(50):
            line = json.dumps({"step": step}) + "\n"
            for part in (line[:5], line[5:]):
                file.write(part)
                file.flush()
    assert [record["step"] for record in seen] == list(range(50))


def test_the_follower_goes_on_after_a_line_that_a_full_disk_cut(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo\n\n{"starts_after": 1}\n[]\n\0\0\n{"step": 2}\n')
    seen: list[dict[str, Any]] = []
    with LiveFollower(path, seen.append, every_s=0.01):
        pass
    assert seen == [{"step": 1}, {"starts_after": 1}, {"step": 2}]


def test_an_error_for_the_user_is_found_however_deep_ray_wraps_it() -> None:
    class WorkerGroupError(Exception):
        worker_failures = {1: RuntimeError("other"), 0: RuntimeError("outer")}

    WorkerGroupError.worker_failures[0].__cause__ = DataRefusedError("no row")
    found = find_error(WorkerGroupError(), (RelevanceError,))
    assert isinstance(found, DataRefusedError)
    assert find_error(RuntimeError("lost"), (RelevanceError, *BUGS)) is None
    WorkerGroupError.worker_failures[0].__cause__ = KeyError("a bug")
    assert isinstance(find_error(WorkerGroupError(), BUGS), KeyError)
    WorkerGroupError.worker_failures[0].__cause__ = torch.OutOfMemoryError("40 GiB")
    assert "lower training.micro_batch_tokens" in str(out_of_memory(WorkerGroupError()))


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path) -> RunConfig:
    write_planted(tmp_path, num_rows=8)
    return accepted(build_config(planted_config(tmp_path, str(tiny_llama)), "test"))


def accepted(config: RunConfig) -> RunConfig:
    """The config with all its rows past the gate."""
    shutil.copytree(config.judged_dir, config.accepted_dir, dirs_exist_ok=True)
    return config


def changed(config: RunConfig, **blocks: Any) -> RunConfig:
    return build_config({**config.model_dump(mode="json"), **blocks}, "test")


def whole_checkpoint(root: Path, step: int) -> Path:
    """A checkpoint that is whole by its manifest."""
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


def test_the_fingerprint_moves_with_what_the_weights_follow_from_and_with_nothing_else(
    config: RunConfig, tmp_path: Path
) -> None:
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


def test_checkpoints_of_another_training_are_never_removed(config: RunConfig) -> None:
    plan = plan_training(config)
    said: list[str] = []
    open_checkpoints(plan, said.append)
    whole = whole_checkpoint(plan.checkpoint_dir, 1)
    open_checkpoints(plan, said.append)
    assert said == ["  going on from step-00000001"]
    with pytest.raises(ConfigError, match="seed was 5, is 6"):
        open_checkpoints(plan_training(changed(config, seed=6)), said.append)
    drop_checkpoints(plan_training(changed(config, seed=6)))
    assert whole.is_dir()
    drop_checkpoints(plan)
    assert not plan.checkpoint_dir.exists()


def test_other_rows_are_refused_by_checkpoints_that_are_there(config: RunConfig, tmp_path: Path) -> None:
    plan = plan_training(config)
    open_checkpoints(plan, lambda _: None)
    whole_checkpoint(plan.checkpoint_dir, 1)
    write_planted(tmp_path, num_rows=10)
    with pytest.raises(
        ConfigError,
        match="the digest of the accepted rows was .*run under another name, or remove .* to start anew",
    ):
        open_checkpoints(plan_training(accepted(config)), lambda _: None)
    assert (plan.checkpoint_dir / "step-00000001").is_dir()


class LostError(Exception):
    """What Ray raises where workers were lost; `raised`: by their own code."""

    def __init__(self, raised: Exception | None = None) -> None:
        super().__init__("a worker died")
        self.worker_failures = {0: raised} if raised else {}


@pytest.fixture
def fitted(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(what was said, starts of the workers) where each start ends as one of these says: an error, a step
    that is kept before workers are lost, or None.
    """

    def run(*ends: Exception | int | None, stop: bool = False) -> tuple[list[str], int]:
        said: list[str] = []
        plan, left = plan_training(config), list(ends)
        open_checkpoints(plan, said.append)
        paths = {
            "checkpoint_dir": str(plan.checkpoint_dir),
            "live_path": str(plan.dir / "live.jsonl"),
            "stop_path": str(plan.dir / "stop"),
        }
        if stop:
            (plan.dir / "stop").touch()

        def started(*_: Any) -> None:
            end = left.pop(0)
            if isinstance(end, int):
                whole_checkpoint(plan.checkpoint_dir, end)
                raise LostError
            if end is not None:
                raise end

        monkeypatch.setattr(trainer, "run_workers", started)
        try:
            trainer.fit(config, paths, plan.dir / "ray", said.append, SimpleNamespace(restarted=lambda: None))
        finally:
            run.starts = len(ends) - len(left)  # type: ignore[attr-defined]
        return said, len(ends) - len(left)

    return run


def test_lost_workers_are_started_again_three_times_from_one_checkpoint_and_no_more(fitted: Any) -> None:
    said, starts = fitted(LostError(), LostError(), LostError(), None)
    assert starts == 4 and [line for line in said if "3 of 3" in line]
    with pytest.raises(RetryableError, match="workers were lost .*run the same command again"):
        fitted(LostError(), LostError(), LostError(), LostError(), None)
    assert fitted.starts == 4


def test_a_training_that_gets_on_is_started_again_as_often_as_it_takes(fitted: Any) -> None:
    said, starts = fitted(LostError(), LostError(), 10, LostError(), 20, 30, 40, LostError(), None)
    assert starts == 9 and not [line for line in said if "3 of 3" in line]


@pytest.mark.parametrize(
    "error",
    [DataRefusedError("no row"), KeyError("a bug"), ConfigError("no such")],
    ids=["data", "bug", "config"],
)
def test_what_workers_raise_themselves_ends_the_training_at_once(fitted: Any, error: Exception) -> None:
    with pytest.raises(type(error)):
        fitted(LostError(error), None)
    assert fitted.starts == 1


def test_the_same_error_twice_from_the_same_place_is_the_workers_own_unless_it_tells_of_another(
    fitted: Any,
) -> None:
    with pytest.raises(RuntimeError, match="sizes differ"):
        fitted(LostError(RuntimeError("sizes differ")), LostError(RuntimeError("sizes differ")), None)
    assert fitted.starts == 2
    closed = RuntimeError("gloo: Connection closed by peer")
    assert fitted(LostError(closed), LostError(closed), None)[1] == 3


def test_workers_lost_while_asked_to_stop_are_not_started_again(fitted: Any) -> None:
    with pytest.raises(RetryableError):
        fitted(LostError(), None, stop=True)
    assert fitted.starts == 1


def test_a_cluster_without_room_is_told_with_what_the_workers_take(fitted: Any) -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    with pytest.raises(
        RetryableError,
        match="no room for 2 workers of 1 CPUs each; wait until others are done, add nodes, or lower",
    ):
        fitted(ControllerError(WorkerGroupStartupTimeoutError(2)), None)
    assert fitted.starts == 1


def test_where_workers_were_stuck_is_told_also_when_they_are_not_started_again(
    fitted: Any, config: RunConfig
) -> None:
    folder = plan_training(config).dir
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"stuck-{number}.txt").write_text("in hang" * number)
    with pytest.raises(RetryableError):
        fitted(LostError(), stop=True)
    assert [path.name for path in folder.glob("hung-*")] == ["hung-1-1.txt"]


def test_no_bundle_has_no_fingerprint(tmp_path: Path) -> None:
    assert trained_fingerprint(tmp_path / "nothing") is None


def test_a_target_that_is_no_linear_is_found_before_any_worker_starts(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="its linears: .*q_proj"):
        plan_training(changed(config, adapter={"target_modules": ["qkv"]}))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_deepspeed_config_is_a_function_of_ours(config: RunConfig, stage: int) -> None:
    plain = changed(config, deepspeed={"zero_stage": stage})
    made = deepspeed_config(plain.deepspeed, plain.training, plain.optimizer)
    assert made["zero_optimization"] == {"stage": stage}
    assert made["gradient_clipping"] == plain.optimizer.gradient_clipping
    assert "bf16" not in made and "fp16" not in made
