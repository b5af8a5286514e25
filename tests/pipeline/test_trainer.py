"""The driver's side of training: following what workers write, telling what ended them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from planted import planted_config, write_planted

from pipeline.config import RunConfig, build_config
from pipeline.errors import ConfigError, DataRefusedError
from pipeline.live import LiveFollower
from pipeline.trainer import told_to_user, trained_fingerprint, training_fingerprint
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


def test_an_error_for_the_user_is_found_however_deep_ray_wraps_it() -> None:
    class WorkerGroupError(Exception):
        worker_failures = {1: RuntimeError("other"), 0: RuntimeError("outer")}

    WorkerGroupError.worker_failures[0].__cause__ = DataRefusedError("no row")
    found = told_to_user(WorkerGroupError())
    assert isinstance(found, DataRefusedError)
    assert told_to_user(RuntimeError("lost")) is None


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
    fingerprint, digest = training_fingerprint(config)
    assert training_fingerprint(changed(config, seed=6))[0] != fingerprint
    assert training_fingerprint(changed(config, optimizer={"learning_rate": 0.02}))[0] != fingerprint
    assert training_fingerprint(accepted(changed(config, scoring={"batch_tokens": 64}, name="other")))[0] == fingerprint
    write_planted(tmp_path, num_rows=10)
    accepted(config)
    again, other_digest = training_fingerprint(config)
    assert again != fingerprint
    assert other_digest != digest


def test_no_bundle_has_no_fingerprint(tmp_path: Path) -> None:
    assert trained_fingerprint(tmp_path / "nothing") is None


def test_a_target_that_is_no_linear_is_found_before_any_worker_starts(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="its linears: .*q_proj"):
        training_fingerprint(changed(config, adapter={"target_modules": ["qkv"]}))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_deepspeed_config_is_a_function_of_ours(config: RunConfig, stage: int) -> None:
    plain = changed(config, deepspeed={"zero_stage": stage})
    made = deepspeed_config(plain.deepspeed, plain.training, plain.optimizer)
    assert made["zero_optimization"] == {"stage": stage}
    assert made["gradient_clipping"] == plain.optimizer.gradient_clipping
    assert "bf16" not in made and "fp16" not in made
