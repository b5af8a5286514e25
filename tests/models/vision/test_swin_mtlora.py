"""MTLoRA on a Swin transformer: placement of the pairs and trainable parameters."""

from typing import Any

import pytest
import torch
from transformers import SwinConfig, SwinModel

from models.adapters.mtlora import MTLoRAConfig
from models.vision.mtlora_stream import MTLoRAStreamLinear
from models.vision.swin_mtlora import TaskStreamSwin, parameter_count
from tests.support.tiny_swin import (
    IMAGE_SIZES,
    MODES,
    NUM_TASKS,
    WIDTHS,
    build,
    build_trunk,
    images,
    weighted_sum,
)

# ---- shapes and placement


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_each_stage_returns_shared_and_task_maps(size: tuple[int, int]) -> None:
    features = build(stir=True)(images(size))
    assert features.sizes == IMAGE_SIZES[size]
    lengths = [height * width for height, width in features.sizes]
    assert [x.shape for x in features.shared] == [
        (2, length, width) for length, width in zip(lengths, WIDTHS, strict=True)
    ]
    assert [x.shape for x in features.tasks] == [
        (NUM_TASKS, 2, length, width) for length, width in zip(lengths, WIDTHS, strict=True)
    ]


def test_task_pairs_are_in_the_last_block_of_each_stage() -> None:
    layers = {name: layer for name, layer in build().named_modules() if isinstance(layer, MTLoRAStreamLinear)}
    blocks = [f"stages.{stage}.blocks.{block}." for stage in (0, 1) for block in (0, 1)]
    linears = [f"attention.{letter}_proj" for letter in "qkvo"] + ["mlp.fc1", "mlp.fc2"]
    assert sorted(layers) == sorted(block + linear for block in blocks for linear in linears)
    with_tasks = {name for name, layer in layers.items() if layer.num_tasks == NUM_TASKS}
    assert with_tasks == {
        f"stages.{stage}.blocks.1.{linear}"
        for stage in (0, 1)
        for linear in ("attention.o_proj", "mlp.fc1", "mlp.fc2")
    }
    assert all(layer.num_tasks == 0 for name, layer in layers.items() if name not in with_tasks)
    assert {name for name, _ in build().named_parameters() if "_T" in name} == {
        f"{n}.{p}" for n in with_tasks for p in ("down_TQD", "up_TOQ")
    }


def test_query_key_and_value_share_one_down_projection() -> None:
    for block in (block for stage in build().float().stages for block in stage.blocks):
        assert (
            block.attention.q_proj.down_RD is block.attention.k_proj.down_RD is block.attention.v_proj.down_RD
        )


def test_trainable_trunk_parameters_follow_the_published_code() -> None:
    trained = {name for name, parameter in build().named_parameters() if parameter.requires_grad}
    others = {name for name in trained if ".down_" not in name and ".up_" not in name}
    norms = [
        f"blocks.{block}.layernorm_{place}.{kind}"
        for block in (0, 1)
        for place in ("before", "after")
        for kind in ("weight", "bias")
    ]
    tables = [
        f"blocks.{block}.attention.relative_position_bias.relative_position_bias_table" for block in (0, 1)
    ]
    expected = {f"stages.{stage}.{name}" for stage in (0, 1) for name in norms + tables}
    expected |= {f"stages.0.downsample.{name}" for name in ("norm.weight", "norm.bias", "reduction.weight")}
    expected |= {
        f"embeddings.{part}.{kind}"
        for part in ("patch_embeddings.projection", "norm")
        for kind in ("weight", "bias")
    }
    assert others == expected


# ---- gradients


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_gradients_reach_exactly_the_trainable_parameters(size: tuple[int, int], mode: str) -> None:
    model = build(mode, stir=True)
    features = model(images(size))
    weighted_sum([*features.shared, *features.tasks]).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), (
                name
            )
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("mode", MODES)
def test_loss_of_a_task_does_not_train_other_tasks(mode: str) -> None:
    model = build(mode, stir=True)
    weighted_sum([tasks_TBLC[1] for tasks_TBLC in model(images()).tasks]).backward()
    for name, parameter in model.named_parameters():
        if "_T" in name:
            assert (
                parameter.grad is not None and parameter.grad[1].any() and not parameter.grad[[0, 2]].any()
            ), name
    first, last = model.stages[0].blocks[0], model.stages[1].blocks[-1]
    trunk = [
        model.embeddings.patch_embeddings.projection.weight,
        first.attention.q_proj.up_OR,
        first.mlp.fc2.down_RD,
        last.attention.v_proj.down_RD,
    ]
    assert all(parameter.grad.any() for parameter in trunk)


# ---- counts, seeds, refusals


def low_rank_numbers(model: TaskStreamSwin) -> int:
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".down_" in name or ".up_" in name
    )


@pytest.mark.parametrize("num_tasks", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_parameter_count_matches_the_model(mode: str, num_tasks: int) -> None:
    config = MTLoRAConfig(rank=5, task_rank=3, mode=mode)  # type: ignore[arg-type]
    expected = parameter_count(build_trunk(), config, num_tasks)
    assert low_rank_numbers(TaskStreamSwin(build_trunk(), config, num_tasks, seed=0)) == expected


@pytest.mark.parametrize(("rank", "millions"), [(16, 4.95), (32, 6.08), (64, 8.34)])
def test_swin_tiny_has_the_published_parameter_count(rank: int, millions: float) -> None:
    decoders = 1_946_624  # from the authors' log, github.com/scale-lab/MTLoRA issue 5
    with torch.device("meta"):
        trunk = SwinModel(SwinConfig())  # Swin-T is the default
    model = TaskStreamSwin(trunk, MTLoRAConfig(rank=rank, task_rank=4), 4, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained - low_rank_numbers(model) == 1_599_546  # from the same log
    assert round((trained + decoders) / 1e6, 2) == millions


def test_pairs_depend_on_the_seed_alone() -> None:
    one, same, other = (dict(build(seed=seed).named_parameters()) for seed in (0, 0, 1))
    drawn = [name for name in one if ".down_" in name]
    assert all(
        torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in drawn
    )
    trunk, state = build_trunk(), torch.get_rng_state()
    TaskStreamSwin(trunk, MTLoRAConfig(), NUM_TASKS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_smaller_than_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="4 x 3, less than its window of 4; use larger images"):
        build()(images((32, 24)))


@pytest.mark.parametrize(
    ("num_tasks", "setting"), [(0, {}), (2, {"task_layers": 2}), (2, {"layers_to_transform": (0,)})]
)
def test_ineffective_settings_are_refused(num_tasks: int, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one task|has no effect on a Swin transformer"):
        TaskStreamSwin(build_trunk(), MTLoRAConfig(**setting), num_tasks, seed=0)
