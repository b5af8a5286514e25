"""The driver's side of training: following what workers write, telling what ended them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import planted_config, write_planted

from pipeline.config import RunConfig, build_config
from pipeline.errors import ConfigError, DataRefusedError, RelevanceError
from pipeline.files import file_sha256, write_json
from pipeline.live import LiveFollower
from pipeline.trainer import BUGS, drop_checkpoints, find_error, go_without, open_checkpoints, out_of_memory
from pipeline.training_plan import plan_training, trained_fingerprint
from pipeline.zero import deepspeed_config


def test_the_follower_hands_on_every_line_once_and_in_order_even_those_written_in_parts(tmp_path: Path) -> None:
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


def test_the_fingerprint_moves_with_what_the_weights_follow_from_and_with_nothing_else(config: RunConfig, tmp_path: Path) -> None:
    plan = plan_training(config)
    spread = {"num_workers": 4, "micro_batch_tokens": 64, "checkpoint_every_steps": 7}
    others: list[dict[str, Any]] = [{"training": {**config.training.model_dump(), **spread}}, {"deepspeed": {"zero_stage": 3}}]
    assert plan_training(changed(config, seed=6)).fingerprint != plan.fingerprint
    assert plan_training(changed(config, optimizer={"learning_rate": 0.02})).fingerprint != plan.fingerprint
    for blocks in others:
        assert plan_training(changed(config, **blocks)).fingerprint == plan.fingerprint
    dropping = {"adapter": {"lora_dropout": 0.1}}
    assert plan_training(changed(config, **dropping)).fingerprint != plan_training(changed(config, **dropping, **others[0])).fingerprint
    assert plan_training(accepted(changed(config, scoring={"batch_tokens": 64}, name="other"))).fingerprint == plan.fingerprint
    write_planted(tmp_path, num_rows=10)
    accepted(config)
    again = plan_training(config)
    assert again.fingerprint != plan.fingerprint
    assert again.data_digest != plan.data_digest


def test_checkpoints_of_another_training_are_never_removed(config: RunConfig) -> None:
    plan = plan_training(config)
    said: list[str] = []
    open_checkpoints(plan, said.append)
    whole = plan.checkpoint_dir / "step-00000001"
    whole.mkdir()
    for name, content in (("weights.safetensors", b"w"), ("optimizer-0.safetensors", b"o"), ("state.json", b"{}")):
        (whole / name).write_bytes(content)
    write_json(whole / "manifest.json", {path.name: file_sha256(path) for path in sorted(whole.iterdir())})
    open_checkpoints(plan, said.append)
    assert said == ["  going on from step-00000001"]
    with pytest.raises(ConfigError, match="seed was 5, is 6"):
        open_checkpoints(plan_training(changed(config, seed=6)), said.append)
    drop_checkpoints(plan_training(changed(config, seed=6)))
    assert whole.is_dir()
    drop_checkpoints(plan)
    assert not plan.checkpoint_dir.exists()


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


def test_ray_s_trainer_starts_no_actor_for_datasets_and_keeps_the_rest_of_its_own() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer: Any = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    kinds = [type(one).__name__ for one in trainer._create_default_callbacks()]
    assert "DatasetsCallback" in kinds and "BackendSetupCallback" in kinds and callable(trainer._register_sigint_handler)
    go_without(trainer)
    assert [type(one).__name__ for one in trainer._create_default_callbacks()] == [kind for kind in kinds if kind != "DatasetsCallback"]
