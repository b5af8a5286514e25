"""MTLoRA on a Swin transformer: where the pairs are, what the streams compute, what is trained."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import SwinConfig, SwinModel
from transformers.models.swin.modeling_swin import window_partition, window_reverse

from models.config import MTLoRAConfig
from models.vision.mtlora_stream import MTLoRAStreamLinear
from models.vision.swin_mtlora import TaskStreamSwin, parameter_count, run_last_block

NUM_TASKS = 3
WIDTHS = (16, 32)
MODES = ("matrix", "matrixv2")
# the last two pad their windows
IMAGE_SIZES = {(32, 32): ((8, 8), (4, 4)), (36, 44): ((9, 11), (5, 6)), (33, 49): ((9, 13), (5, 7))}
SHIFTED_SIZES = ((8, 8), (9, 11))  # maps with more than one window, whole and padded


def build_trunk(**settings: Any) -> SwinModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "image_size": 32,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "drop_path_rate": 0.0,
    }
    trunk = SwinModel(SwinConfig(**shape | settings)).double().eval()
    with torch.no_grad():  # fresh biases and tables are zero, which would hide a mistake in them
        for parameter in trunk.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return trunk


def build(
    mode: str = "matrixv2", stir: bool = False, seed: int = 0, dropout: float = 0.0, **settings: Any
) -> TaskStreamSwin:
    """`stir` moves the up-projections away from zero."""
    config = MTLoRAConfig(
        rank=4, task_rank=2, mode=mode, shared_scale=2.0, task_scale=3.0, lora_dropout=dropout
    )  # type: ignore[arg-type]
    model = TaskStreamSwin(build_trunk(**settings), config, NUM_TASKS, seed).double().eval()
    if stir:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".up_" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def random_numbers(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return random_numbers(2, 3, *size)


def weighted_sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    """A loss to whose gradient every entry adds its own share."""
    return torch.stack(
        [
            (tensor * random_numbers(*tensor.shape, seed=5 + index)).sum()
            for index, tensor in enumerate(tensors)
        ]
    ).sum()


# ---- shapes and placement


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_each_stage_gives_a_shared_map_and_one_for_each_task(size: tuple[int, int]) -> None:
    features = build(stir=True)(images(size))
    assert features.sizes == IMAGE_SIZES[size]
    lengths = [height * width for height, width in features.sizes]
    assert [x.shape for x in features.shared] == [
        (2, length, width) for length, width in zip(lengths, WIDTHS, strict=True)
    ]
    assert [x.shape for x in features.tasks] == [
        (NUM_TASKS, 2, length, width) for length, width in zip(lengths, WIDTHS, strict=True)
    ]


def test_task_pairs_are_on_proj_fc1_and_fc2_of_the_last_block_of_each_stage_only() -> None:
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


def test_query_key_and_value_share_one_down_projection_also_after_a_change_of_dtype() -> None:
    for block in (block for stage in build().float().stages for block in stage.blocks):
        assert (
            block.attention.q_proj.down_RD is block.attention.k_proj.down_RD is block.attention.v_proj.down_RD
        )


def test_trained_beside_the_pairs_are_norms_patch_embedding_bias_tables_and_patch_merging() -> None:
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


# ---- what the streams compute


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_all_streams_start_as_the_untouched_models_bit_for_bit(size: tuple[int, int], mode: str) -> None:
    asked = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    untouched = build_trunk()(images(size), **asked).reshaped_hidden_states[1:]
    features = build(mode)(images(size))
    for expected, shared_BLC, tasks_TBLC in zip(untouched, features.shared, features.tasks, strict=True):
        assert torch.equal(shared_BLC, expected.flatten(2).transpose(1, 2))
        assert all(torch.equal(task_BLC, shared_BLC) for task_BLC in tasks_TBLC)


def test_task_pairs_do_not_touch_the_shared_stream() -> None:
    model = build(stir=True)
    before = model(images())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_T" in name:
                parameter.add_(1)
    after = model(images())
    assert all(torch.equal(x, y) for x, y in zip(before.shared, after.shared, strict=True))
    assert not any(torch.allclose(x, y) for x, y in zip(before.tasks, after.tasks, strict=True))


def shared_linear(layer: MTLoRAStreamLinear, x: torch.Tensor) -> torch.Tensor:
    """W x + s B A x"""
    return (
        functional.linear(x, layer.base.weight, layer.base.bias)
        + layer.config.shared_scale * x @ layer.down_RD.T @ layer.up_OR.T
    )


def task_linear(layer: MTLoRAStreamLinear, task: int, x: torch.Tensor, x_task: torch.Tensor) -> torch.Tensor:
    """W x + s_t B_t A_t x_t, and s B A x more in mode matrixv2"""
    start = (
        shared_linear(layer, x)
        if layer.config.mode == "matrixv2"
        else functional.linear(x, layer.base.weight, layer.base.bias)
    )
    return start + layer.config.task_scale * x_task @ layer.down_TQD[task].T @ layer.up_TOQ[task].T


def naive_attention(attention: Any, windows_NPC: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What proj reads, head by head."""
    query, key, value = (
        shared_linear(layer, windows_NPC) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias_HPP = attention.relative_position_bias()[0]
    heads = []
    for head in range(attention.num_attention_heads):
        own = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        scores_NPP = (
            query[..., own] @ key[..., own].transpose(1, 2) / attention.head_dim**0.5 + bias_HPP[head]
        )
        if mask is not None:
            scores_NPP = scores_NPP + mask.repeat(len(windows_NPC) // len(mask), 1, 1)
        heads.append(scores_NPP.softmax(-1) @ value[..., own])
    return torch.cat(heads, -1)


def naive_last_block(
    block: Any, x_BLC: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The formulas of models/vision/swin_mtlora.py, one task after the other."""
    window, shift = block.window_size, block.shift_size
    padded = [-(-side // window) * window for side in size]
    map_BHWC = functional.pad(
        block.layernorm_before(x_BLC).unflatten(1, size),
        (0, 0, 0, padded[1] - size[1], 0, padded[0] - size[0]),
    )
    windows_NPC = window_partition(map_BHWC.roll((-shift, -shift), (1, 2)), window).flatten(1, 2)
    mixed_NPC = naive_attention(
        block.attention,
        windows_NPC,
        block.get_attn_mask(*padded, dtype=torch.float64, device=torch.device("cpu")),
    )

    def back(y_NPC: torch.Tensor) -> torch.Tensor:
        maps = window_reverse(y_NPC.unflatten(1, (window, window)), window, *padded).roll(
            (shift, shift), (1, 2)
        )
        return maps[:, : size[0], : size[1]].flatten(1, 2)

    fc1, fc2, act, norm, proj = (
        block.mlp.fc1,
        block.mlp.fc2,
        functional.gelu,
        block.layernorm_after,
        block.attention.o_proj,
    )
    mid_BLC = x_BLC + back(shared_linear(proj, mixed_NPC))
    wide = shared_linear(fc1, norm(mid_BLC))
    shared_BLC = mid_BLC + shared_linear(fc2, act(wide))
    tasks = []
    for task in range(NUM_TASKS):
        task_mid_BLC = x_BLC + back(task_linear(proj, task, mixed_NPC, mixed_NPC))
        task_wide = task_linear(fc1, task, norm(mid_BLC), norm(task_mid_BLC))
        tasks.append(task_mid_BLC + task_linear(fc2, task, act(wide), act(task_wide)))
    return shared_BLC, tasks


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SHIFTED_SIZES)
def test_last_block_and_all_its_gradients_are_those_of_one_formula_a_task(
    size: tuple[int, int], mode: str
) -> None:
    block = build(mode, stir=True).stages[0].blocks[-1]
    assert block.shift_size
    x_BLC = random_numbers(2, size[0] * size[1], WIDTHS[0]).requires_grad_()
    inputs = [x_BLC, *(parameter for parameter in block.parameters() if parameter.requires_grad)]

    shared_BLC, tasks_TBLC = run_last_block(block, x_BLC, size)
    naive_shared_BLC, naive_tasks = naive_last_block(block, x_BLC, size)
    torch.testing.assert_close(shared_BLC, naive_shared_BLC, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tasks_TBLC, torch.stack(naive_tasks), rtol=1e-10, atol=1e-10)

    gradients = torch.autograd.grad(weighted_sum([shared_BLC, *tasks_TBLC]), inputs)
    naive_gradients = torch.autograd.grad(weighted_sum([naive_shared_BLC, *naive_tasks]), inputs)
    assert all(gradient.any() for gradient in gradients)
    torch.testing.assert_close(gradients, naive_gradients, rtol=1e-10, atol=1e-10)


def test_features_do_not_depend_on_the_sizes_of_images_seen_before() -> None:
    model = build(stir=True)
    fresh = model(images((64, 64)))
    model(images((32, 32)))  # stage 1 is one window, where Swin does not shift
    again = model(images((64, 64)))
    assert all(
        torch.equal(x, y) for x, y in zip(fresh.tasks + fresh.shared, again.tasks + again.shared, strict=True)
    )


def test_stochastic_depth_keeps_or_drops_a_tasks_row_as_a_whole() -> None:
    block = build(drop_path_rate=0.5).stages[1].blocks[-1]
    nn.init.zeros_(block.mlp.fc2.base.weight)
    nn.init.zeros_(block.mlp.fc2.base.bias)
    x_BLC = random_numbers(8, 16, WIDTHS[1])
    kept_BLC = run_last_block(block, x_BLC, (4, 4))[0] - x_BLC
    torch.manual_seed(0)
    tasks_TBLC = run_last_block(block.train(), x_BLC, (4, 4))[1]
    is_kept_TB = (tasks_TBLC - x_BLC).abs().sum((2, 3)) > 1e-9
    # differs by task, and by row
    assert not (is_kept_TB == is_kept_TB[0]).all() and not (is_kept_TB == is_kept_TB[:, :1]).all()
    torch.testing.assert_close(
        tasks_TBLC - x_BLC, 2 * kept_BLC * is_kept_TB[:, :, None, None], rtol=1e-10, atol=1e-10
    )


# ---- gradients


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_gradients_reach_all_that_is_trained_and_nothing_frozen(size: tuple[int, int], mode: str) -> None:
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
def test_loss_of_one_task_trains_the_trunk_and_no_other_tasks_pairs(mode: str) -> None:
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
def test_parameter_count_from_shapes_is_what_is_there(mode: str, num_tasks: int) -> None:
    config = MTLoRAConfig(rank=5, task_rank=3, mode=mode)  # type: ignore[arg-type]
    expected = parameter_count(build_trunk(), config, num_tasks)
    assert low_rank_numbers(TaskStreamSwin(build_trunk(), config, num_tasks, seed=0)) == expected


@pytest.mark.parametrize(("rank", "millions"), [(16, 4.95), (32, 6.08), (64, 8.34)])
def test_swin_tiny_with_four_tasks_trains_as_many_numbers_as_the_papers_table_says(
    rank: int, millions: float
) -> None:
    decoders = 1_946_624  # the authors' print-out, github.com/scale-lab/MTLoRA issue 5
    with torch.device("meta"):
        trunk = SwinModel(SwinConfig())  # Swin-T is the default
    model = TaskStreamSwin(trunk, MTLoRAConfig(rank=rank, task_rank=4), 4, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained - low_rank_numbers(model) == 1_599_546  # the same print-out
    assert round((trained + decoders) / 1e6, 2) == millions


def test_same_seed_draws_the_same_pairs_and_leaves_the_global_generator_alone() -> None:
    one, same, other = (dict(build(seed=seed).named_parameters()) for seed in (0, 0, 1))
    drawn = [name for name in one if ".down_" in name]
    assert all(
        torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in drawn
    )
    trunk, state = build_trunk(), torch.get_rng_state()
    TaskStreamSwin(trunk, MTLoRAConfig(), NUM_TASKS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_too_small_for_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="4 x 3, less than its window of 4; use larger images"):
        build()(images((32, 24)))


@pytest.mark.parametrize(
    ("num_tasks", "setting"), [(0, {}), (2, {"task_layers": 2}), (2, {"layers_to_transform": (0,)})]
)
def test_settings_without_an_effect_are_refused(num_tasks: int, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one task|has no effect on a Swin transformer"):
        TaskStreamSwin(build_trunk(), MTLoRAConfig(**setting), num_tasks, seed=0)


# ---- the layer


def test_streams_that_start_here_are_those_given_as_copies_of_the_shared_one() -> None:
    layer = build(stir=True).stages[0].blocks[-1].mlp.fc1
    x = random_numbers(2, 5, WIDTHS[0])
    torch.testing.assert_close(
        layer.streams(x), layer.streams(x, x.expand(NUM_TASKS, *x.shape)), rtol=1e-12, atol=1e-12
    )


def test_shared_stream_alone_is_the_shared_stream_beside_others() -> None:
    layer = build(stir=True).stages[0].blocks[-1].mlp.fc1
    x = random_numbers(2, 5, WIDTHS[0])
    assert torch.equal(layer(x), layer.streams(x)[0])


def test_dropout_is_off_the_frozen_weight_and_on_every_pair() -> None:
    layer = build(stir=True, dropout=0.5).stages[0].blocks[-1].mlp.fc1.train()
    x, x_tasks = random_numbers(2, 5, WIDTHS[0]), random_numbers(NUM_TASKS, 2, 5, WIDTHS[0])
    first, second = layer.streams(x, x_tasks), layer.streams(x, x_tasks)
    assert not torch.allclose(first[0], second[0])
    assert not any(
        torch.allclose(*pair) for pair in zip(first[1] - first[0], second[1] - second[0], strict=True)
    )
    nn.init.zeros_(layer.up_OR)
    nn.init.zeros_(layer.up_TOQ)
    shared, tasks = layer.streams(x, x_tasks)
    assert torch.equal(shared, layer.base(x)) and torch.equal(tasks, shared.expand_as(tasks))
