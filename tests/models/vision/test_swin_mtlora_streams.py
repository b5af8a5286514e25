"""Streams of a Swin transformer with MTLoRA pairs, compared with their formulas."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.models.swin.modeling_swin import window_partition, window_reverse

from models.vision.mtlora_stream import MTLoRAStreamLinear
from models.vision.swin_mtlora import forward_last_block
from tests.support.tiny_swin import (
    IMAGE_SIZES,
    MODES,
    NUM_TASKS,
    WIDTHS,
    build,
    build_trunk,
    images,
    random_numbers,
    weighted_sum,
)

SHIFTED_SIZES = ((8, 8), (9, 11))  # maps with more than one window, whole and padded


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_new_streams_equal_the_base_model_bit_for_bit(size: tuple[int, int], mode: str) -> None:
    options = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    untouched = build_trunk()(images(size), **options).reshaped_hidden_states[1:]
    features = build(mode)(images(size))
    for expected, shared_BLC, tasks_TBLC in zip(untouched, features.shared, features.tasks, strict=True):
        assert torch.equal(shared_BLC, expected.flatten(2).transpose(1, 2))
        assert all(torch.equal(task_BLC, shared_BLC) for task_BLC in tasks_TBLC)


def test_task_pairs_do_not_change_the_shared_stream() -> None:
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
    """Return W x + s B A x."""
    return (
        functional.linear(x, layer.base.weight, layer.base.bias)
        + layer.config.shared_scale * x @ layer.down_RD.T @ layer.up_OR.T
    )


def task_linear(layer: MTLoRAStreamLinear, task: int, x: torch.Tensor, x_task: torch.Tensor) -> torch.Tensor:
    """Return W x + s_t B_t A_t x_t, plus s B A x in mode matrixv2."""
    start = (
        shared_linear(layer, x)
        if layer.config.mode == "matrixv2"
        else functional.linear(x, layer.base.weight, layer.base.bias)
    )
    return start + layer.config.task_scale * x_task @ layer.down_TQD[task].T @ layer.up_TOQ[task].T


def naive_attention(attention: Any, windows_NPC: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the input of proj, computed head by head."""
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
    """Compute the formulas of models/vision/swin_mtlora.py, task by task."""
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
def test_last_block_and_gradients_match_the_formulas(size: tuple[int, int], mode: str) -> None:
    block = build(mode, stir=True).stages[0].blocks[-1]
    assert block.shift_size
    x_BLC = random_numbers(2, size[0] * size[1], WIDTHS[0]).requires_grad_()
    inputs = [x_BLC, *(parameter for parameter in block.parameters() if parameter.requires_grad)]

    shared_BLC, tasks_TBLC = forward_last_block(block, x_BLC, size)
    naive_shared_BLC, naive_tasks = naive_last_block(block, x_BLC, size)
    torch.testing.assert_close(shared_BLC, naive_shared_BLC, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tasks_TBLC, torch.stack(naive_tasks), rtol=1e-10, atol=1e-10)

    gradients = torch.autograd.grad(weighted_sum([shared_BLC, *tasks_TBLC]), inputs)
    naive_gradients = torch.autograd.grad(weighted_sum([naive_shared_BLC, *naive_tasks]), inputs)
    assert all(gradient.any() for gradient in gradients)
    torch.testing.assert_close(gradients, naive_gradients, rtol=1e-10, atol=1e-10)


def test_features_do_not_depend_on_earlier_image_sizes() -> None:
    model = build(stir=True)
    fresh = model(images((64, 64)))
    model(images((32, 32)))  # stage 1 is one window, where Swin does not shift
    again = model(images((64, 64)))
    assert all(
        torch.equal(x, y) for x, y in zip(fresh.tasks + fresh.shared, again.tasks + again.shared, strict=True)
    )


def test_stochastic_depth_drops_whole_task_rows() -> None:
    block = build(drop_path_rate=0.5).stages[1].blocks[-1]
    nn.init.zeros_(block.mlp.fc2.base.weight)
    nn.init.zeros_(block.mlp.fc2.base.bias)
    x_BLC = random_numbers(8, 16, WIDTHS[1])
    kept_BLC = forward_last_block(block, x_BLC, (4, 4))[0] - x_BLC
    torch.manual_seed(0)
    tasks_TBLC = forward_last_block(block.train(), x_BLC, (4, 4))[1]
    is_kept_TB = (tasks_TBLC - x_BLC).abs().sum((2, 3)) > 1e-9
    # differs by task, and by row
    assert not (is_kept_TB == is_kept_TB[0]).all() and not (is_kept_TB == is_kept_TB[:, :1]).all()
    torch.testing.assert_close(
        tasks_TBLC - x_BLC, 2 * kept_BLC * is_kept_TB[:, :, None, None], rtol=1e-10, atol=1e-10
    )


def test_starting_streams_equal_copies_of_the_shared_one() -> None:
    layer = build(stir=True).stages[0].blocks[-1].mlp.fc1
    x = random_numbers(2, 5, WIDTHS[0])
    torch.testing.assert_close(
        layer.streams(x), layer.streams(x, x.expand(NUM_TASKS, *x.shape)), rtol=1e-12, atol=1e-12
    )


def test_forward_equals_the_shared_stream() -> None:
    layer = build(stir=True).stages[0].blocks[-1].mlp.fc1
    x = random_numbers(2, 5, WIDTHS[0])
    assert torch.equal(layer(x), layer.streams(x)[0])


def test_dropout_applies_to_pairs_only() -> None:
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
