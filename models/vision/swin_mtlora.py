"""MTLoRA (Agiza et al., CVPR 2024, arXiv 2403.20320) on a Swin transformer: one shared encoder, features of
their own for T tasks.

Every block has a task-agnostic pair on qkv, proj, fc1 and fc2. In the last block of a stage proj, fc1 and fc2
hold T task pairs too:

    x   = x0 + proj(a),      x   = x   + fc2(act(fc1(norm(x))))
    x_t = x0 + proj_t(a),    x_t = x_t + fc2_t(act(fc1_t(norm(x_t))))

a is the attention's mixture, before proj; proj_t, fc1_t and fc2_t are layers of
models/vision/mtlora_stream.py.

Attention mixes the shared stream alone, and only the shared stream goes on to the next stage.

Shape legend: B rows (images), L positions of a stage's map, C its channels, H and W height and width padded
to whole windows, N windows of all rows, P positions of a window, T tasks. Y stands for B, or T * B where task
streams are rows.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from models.adapters.injection import replace_module
from models.adapters.mtlora import MTLoRAConfig
from models.vision.mtlora_stream import MTLoRAStreamLinear

if TYPE_CHECKING:
    from transformers import SwinModel

QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

PROJ = "attention.o_proj"

STREAMED = (PROJ, "mlp.fc1", "mlp.fc2")

# of MTLoRAConfig; this file's placement stands for them
FIXED_SETTINGS = ("target_modules", "layers_to_transform", "task_layers")

Size = tuple[int, int]


class StreamFeatures(NamedTuple):
    """What decoders read, stage by stage. A plain tuple, so that wrappers of modules find the tensors in
    it.
    """

    shared: tuple[torch.Tensor, ...]  # (B, L, C) of each stage, before its patch merging
    tasks: tuple[torch.Tensor, ...]  # (T, B, L, C) of each stage, before its patch merging
    sizes: tuple[Size, ...]  # height and width of each stage's map, L = height * width


class StreamStart(MTLoRAStreamLinear):
    """The output projection where task streams begin. The attention hands on what it returns as it is."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self.streams(x)


class TaskStreamSwin(nn.Module):
    """A SwinModel's embeddings and stages with MTLoRA's pairs, put in place: `swin` itself is changed.

    Trained beside the pairs are the layer norms, the patch embedding, the tables of relative position bias
    and the patch merging, as in the published code; everything else is frozen. The model's last norm and its
    pooling belong to a classifier and are left out.
    """

    def __init__(self, swin: "SwinModel", config: MTLoRAConfig, num_tasks: int, seed: int) -> None:
        """ValueError: no task, or the config sets a placement of its own."""
        check_placement(config, num_tasks)
        super().__init__()
        freeze(swin)
        generator = torch.Generator().manual_seed(seed)
        for block, is_last in blocks(swin):
            add_pairs(block, num_tasks if is_last else 0, config, generator)
        self.window_size: int = swin.config.window_size
        self.embeddings: Any = swin.embeddings
        self.stages: Any = swin.encoder.layers

    def forward(self, pixel_values: torch.Tensor) -> StreamFeatures:
        """(B, colours, height, width) in pixels. ValueError: a stage's map would be smaller than a window.

        Features are those before patch merging, at strides 4, 8, 16 and 32, which decoders of a feature
        pyramid expect. The published code passes task streams through their stage's merging first:
        `stages[i].downsample(tasks[i].flatten(0, 1), sizes[i])`.
        """
        shared, tasks, sizes = [], [], []
        hidden_BLC, size = self.embeddings(pixel_values)
        for stage in self.stages:
            self.set_windows(stage, size)
            for block in stage.blocks[:-1]:
                hidden_BLC, _ = block(hidden_BLC, size)
            hidden_BLC, tasks_TBLC = run_last_block(stage.blocks[-1], hidden_BLC, size)
            shared.append(hidden_BLC)
            tasks.append(tasks_TBLC)
            sizes.append(size)
            if stage.downsample is not None:
                hidden_BLC, size = (
                    stage.downsample(hidden_BLC, size),
                    ((size[0] + 1) // 2, (size[1] + 1) // 2),
                )
        return StreamFeatures(tuple(shared), tuple(tasks), tuple(sizes))

    def set_windows(self, stage: Any, size: Size) -> None:
        """Every second block shifts its windows. ValueError: the map is smaller than a window."""
        if min(size) < self.window_size:
            raise ValueError(
                f"the images give a stage a map of {size[0]} x {size[1]}, less than its window of "
                f"{self.window_size}; use larger images"
            )
        # a block that once saw a map of one window keeps its shift at 0 for all larger maps after it
        for index, block in enumerate(stage.blocks):
            block.window_size, block.shift_size = self.window_size, self.window_size // 2 * (index % 2)


def blocks(swin: "SwinModel") -> Iterator[tuple[Any, bool]]:
    """Every block in its order, and whether it is the last of its stage."""
    for stage in swin.encoder.layers:
        stage_blocks: Any = stage.blocks
        for block in stage_blocks:
            yield block, block is stage_blocks[-1]


def check_placement(config: MTLoRAConfig, num_tasks: int) -> None:
    """ValueError: no task, or a setting that the placement here would ignore."""
    if num_tasks < 1:
        raise ValueError(f"task streams need at least one task, not {num_tasks}")
    for name in FIXED_SETTINGS:
        if getattr(config, name) != getattr(MTLoRAConfig, name):
            raise ValueError(
                f"adapter.{name} has no effect on a Swin transformer, where MTLoRA has its own placement; "
                "leave it out"
            )


def freeze(swin: "SwinModel") -> None:
    """Leave training to the norms, the patch embedding, the tables of relative position bias and the patch
    merging.
    """
    swin.requires_grad_(False)
    swin.embeddings.patch_embeddings.requires_grad_(True)
    swin.embeddings.norm.requires_grad_(True)
    for block, _ in blocks(swin):
        for part in (block.layernorm_before, block.layernorm_after, block.attention.relative_position_bias):
            part.requires_grad_(True)
    for stage in swin.encoder.layers[:-1]:
        stage.get_submodule("downsample").requires_grad_(True)


def add_pairs(block: nn.Module, num_tasks: int, config: MTLoRAConfig, generator: torch.Generator) -> None:
    """Give a block's linears their pairs, in place. With `num_tasks` 0 all are task-agnostic."""
    for name in (*QKV, *STREAMED):
        kind = StreamStart if num_tasks and name == PROJ else MTLoRAStreamLinear
        pairs = kind(block.get_submodule(name), 0 if name in QKV else num_tasks, config, generator)  # type: ignore[arg-type]
        replace_module(block, name, pairs)
    # the paper's qkv is one linear with one pair: its up-projection lies here in three parts, which share the
    # one down-projection (a state dict holds it under three names, named_parameters under one)
    query, key, value = (block.get_submodule(name) for name in QKV)
    key.down_RD = value.down_RD = query.down_RD


def run_last_block(block: Any, hidden_BLC: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """SwinLayer.forward of transformers with task streams: (B, L, C) -> shared (B, L, C) and tasks (T, B, L,
    C).

    As there, stochastic depth is on the attention's branch alone; each task's row draws its own.
    """
    from transformers.models.swin.modeling_swin import window_partition

    block.set_shift_and_window_size(size)
    padded_BHWC, _ = block.maybe_pad(block.layernorm_before(hidden_BLC).unflatten(1, size), *size)
    padded_size = (padded_BHWC.shape[1], padded_BHWC.shape[2])
    windows_NPC = window_partition(block.cyclic_shift(padded_BHWC), block.window_size).flatten(1, 2)
    mask = block.get_attn_mask(*padded_size, dtype=windows_NPC.dtype, device=windows_NPC.device)
    (mixed_NPC, mixed_TNPC), _ = block.attention(windows_NPC, mask)

    num_tasks = len(mixed_TNPC)
    x_BLC = hidden_BLC + block.drop_path(join_windows(block, mixed_NPC, padded_size, size))
    # tasks become rows, for a block keeps or drops whole entries of the first dimension
    delta_YLC = block.drop_path(join_windows(block, mixed_TNPC.flatten(0, 1), padded_size, size))
    x_TBLC = hidden_BLC + delta_YLC.unflatten(0, (num_tasks, -1))

    norm, mlp = block.layernorm_after, block.mlp
    wide, wide_T = mlp.fc1.streams(norm(x_BLC), norm(x_TBLC))
    out_BLC, out_TBLC = mlp.fc2.streams(mlp.activation_fn(wide), mlp.activation_fn(wide_T))
    return x_BLC + block.dropout(out_BLC), x_TBLC + block.dropout(out_TBLC)


def join_windows(block: Any, windows_NPC: torch.Tensor, padded_size: Size, size: Size) -> torch.Tensor:
    """(N, P, C) -> (Y, L, C): windows back to maps, the shift and the padding undone."""
    from transformers.models.swin.modeling_swin import window_reverse

    square = block.dropout(windows_NPC).unflatten(1, (block.window_size, block.window_size))
    map_YHWC = block.cyclic_shift(window_reverse(square, block.window_size, *padded_size), reverse=True)
    return map_YHWC[:, : size[0], : size[1]].flatten(1, 2)


def parameter_count(swin: "SwinModel", config: MTLoRAConfig, num_tasks: int) -> int:
    """Numbers in all pairs that TaskStreamSwin would add to `swin`, from shapes alone. A block's q, k and v
    count as one linear.
    """
    total = 0
    for block, is_last in blocks(swin):
        query, key, value = (block.get_submodule(name) for name in QKV)
        width_out = query.out_features + key.out_features + value.out_features
        total += MTLoRAStreamLinear.parameter_count(query.in_features, width_out, 0, config)
        for linear in (block.get_submodule(name) for name in STREAMED):
            total += MTLoRAStreamLinear.parameter_count(
                linear.in_features, linear.out_features, num_tasks if is_last else 0, config
            )
    return total
