"""MTLoRA (Agiza et al., CVPR 2024, arXiv 2403.20320) on a Swin transformer: T tasks, one encoder.

Only tests use this module. It is kept because it is the form of MTLoRA that the paper describes.

Every block has a shared pair on qkv, proj, fc1 and fc2. In the last block of a stage, proj, fc1 and fc2 have
T task pairs too:

    x   = x0 + proj(a),      x   = x   + fc2(act(fc1(norm(x))))
    x_t = x0 + proj_t(a),    x_t = x_t + fc2_t(act(fc1_t(norm(x_t))))

a is the output of attention before proj. proj_t, fc1_t and fc2_t are layers of
models/vision/mtlora_stream.py. Attention reads the shared stream alone, and only the shared stream enters the
next stage.

Shape legend: B images, L positions of a stage's map, C its channels, N windows of all images, W positions of
a window, T tasks. Y stands for T * B.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from models.adapters.mtlora import MTLoRAConfig
from models.transformers_internals import Size, join_windows, partition_windows
from models.vision.mtlora_stream import MTLoRAStreamLinear

if TYPE_CHECKING:
    from transformers import SwinModel

QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

PROJ = "attention.o_proj"

STREAMED = (PROJ, "mlp.fc1", "mlp.fc2")

# settings of MTLoRAConfig that the placement in this module replaces
FIXED_SETTINGS = ("target_modules", "layers_to_transform", "task_layers")


class StreamFeatures(NamedTuple):
    """Features of each stage for a decoder; a tuple, so that wrappers of modules find the tensors."""

    shared: tuple[torch.Tensor, ...]  # (B, L, C) of each stage, before its patch merging
    tasks: tuple[torch.Tensor, ...]  # (T, B, L, C) of each stage, before its patch merging
    sizes: tuple[Size, ...]  # height and width of each stage's map, L = height * width


class StreamSplitLinear(MTLoRAStreamLinear):
    """The output projection where task streams begin; the attention module returns its result as is."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self.streams(x)


class TaskStreamSwin(nn.Module):
    """A SwinModel's embeddings and stages with MTLoRA's pairs; changes `swin` in place.

    As in the published code, the layer norms, the patch embedding, the tables of relative position bias and
    the patch merging are trained too. Everything else is frozen. The model's last norm and pooling belong to
    a classifier and are left out.
    """

    def __init__(self, swin: "SwinModel", config: MTLoRAConfig, num_tasks: int, seed: int) -> None:
        """Add the pairs.

        Raises:
            ValueError: There is no task, or the config sets a placement of its own.
        """
        _check_placement(config, num_tasks)
        super().__init__()
        _freeze(swin)
        generator = torch.Generator().manual_seed(seed)
        for block, is_last in _iter_blocks(swin):
            _add_pairs(block, num_tasks if is_last else 0, config, generator)
        self.window_size: int = swin.config.window_size
        self.embeddings: Any = swin.embeddings
        self.stages: Any = swin.encoder.layers

    def forward(self, pixel_values: torch.Tensor) -> StreamFeatures:
        """Return the features of images (B, channels, height, width).

        Features are those before patch merging, at strides 4, 8, 16 and 32, which decoders of a feature
        pyramid expect. The published code applies the stage's merging to task streams first:
        `stages[i].downsample(tasks[i].flatten(0, 1), sizes[i])`.

        Raises:
            ValueError: A stage's map is smaller than a window.
        """
        shared, tasks, sizes = [], [], []
        hidden_BLC, size = self.embeddings(pixel_values)
        for stage in self.stages:
            self._set_windows(stage, size)
            for block in stage.blocks[:-1]:
                hidden_BLC, _ = block(hidden_BLC, size)
            hidden_BLC, tasks_TBLC = forward_last_block(stage.blocks[-1], hidden_BLC, size)
            shared.append(hidden_BLC)
            tasks.append(tasks_TBLC)
            sizes.append(size)
            if stage.downsample is not None:
                hidden_BLC = stage.downsample(hidden_BLC, size)
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return StreamFeatures(tuple(shared), tuple(tasks), tuple(sizes))

    def _set_windows(self, stage: Any, size: Size) -> None:
        """Set the window size, and the shift of every second block.

        Raises:
            ValueError: The map is smaller than a window.
        """
        if min(size) < self.window_size:
            raise ValueError(
                f"the images give a stage a map of {size[0]} x {size[1]}, less than its window of "
                f"{self.window_size}; use larger images"
            )
        # transformers sets a block's shift to 0 at a map of one window, and leaves it at 0 for larger maps
        for index, block in enumerate(stage.blocks):
            block.window_size, block.shift_size = self.window_size, self.window_size // 2 * (index % 2)


def _iter_blocks(swin: "SwinModel") -> Iterator[tuple[Any, bool]]:
    """Yield each block, and whether it is the last of its stage."""
    for stage in swin.encoder.layers:
        stage_blocks: Any = stage.blocks
        for block in stage_blocks:
            yield block, block is stage_blocks[-1]


def _check_placement(config: MTLoRAConfig, num_tasks: int) -> None:
    """Check that the config sets no placement.

    Raises:
        ValueError: There is no task, or a setting would be ignored.
    """
    if num_tasks < 1:
        raise ValueError(f"task streams need at least one task, not {num_tasks}")
    for name in FIXED_SETTINGS:
        if getattr(config, name) != getattr(MTLoRAConfig, name):
            raise ValueError(
                f"adapter.{name} has no effect on a Swin transformer, where MTLoRA has its own placement; "
                "leave it out"
            )


def _freeze(swin: "SwinModel") -> None:
    """Freeze all but norms, patch embedding, tables of relative position bias and patch merging."""
    swin.requires_grad_(False)
    swin.embeddings.patch_embeddings.requires_grad_(True)
    swin.embeddings.norm.requires_grad_(True)
    for block, _ in _iter_blocks(swin):
        for part in (block.layernorm_before, block.layernorm_after, block.attention.relative_position_bias):
            part.requires_grad_(True)
    for stage in swin.encoder.layers[:-1]:
        stage.get_submodule("downsample").requires_grad_(True)


def _add_pairs(block: nn.Module, num_tasks: int, config: MTLoRAConfig, generator: torch.Generator) -> None:
    """Add pairs to a block's linears in place; `num_tasks` 0 adds shared pairs alone."""
    for name in (*QKV, *STREAMED):
        layer_class = StreamSplitLinear if num_tasks and name == PROJ else MTLoRAStreamLinear
        pairs = layer_class(block.get_submodule(name), 0 if name in QKV else num_tasks, config, generator)  # type: ignore[arg-type]
        block.set_submodule(name, pairs)
    # the paper's qkv is one linear with one pair; here its up-projection has three parts, which share the
    # down-projection (three names in a state dict, one in named_parameters)
    query, key, value = (block.get_submodule(name) for name in QKV)
    key.down_RD = value.down_RD = query.down_RD


def forward_last_block(block: Any, hidden_BLC: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Run transformers' `SwinLayer.forward` with task streams.

    As in transformers, stochastic depth applies to the attention branch alone. Each task draws its own.

    Returns:
        The shared stream (B, L, C) and the task streams (T, B, L, C).
    """
    windows = partition_windows(block, hidden_BLC, size)
    (shared_NWC, tasks_TNWC), _ = block.attention(windows.states_NWC, windows.mask)

    num_tasks = len(tasks_TNWC)
    x_BLC = hidden_BLC + block.drop_path(join_windows(block, shared_NWC, windows.padded_size, size))
    # tasks become rows, because drop_path drops whole entries of the first dimension
    tasks_YLC = join_windows(block, tasks_TNWC.flatten(0, 1), windows.padded_size, size)
    x_TBLC = hidden_BLC + block.drop_path(tasks_YLC).unflatten(0, (num_tasks, -1))

    norm, mlp = block.layernorm_after, block.mlp
    wide, wide_T = mlp.fc1.streams(norm(x_BLC), norm(x_TBLC))
    out_BLC, out_TBLC = mlp.fc2.streams(mlp.activation_fn(wide), mlp.activation_fn(wide_T))
    return x_BLC + block.dropout(out_BLC), x_TBLC + block.dropout(out_TBLC)


def parameter_count(swin: "SwinModel", config: MTLoRAConfig, num_tasks: int) -> int:
    """Return the number of parameters in the pairs that TaskStreamSwin would add to `swin`.

    A block's q, k and v count as one linear, as in the paper.
    """
    total = 0
    for block, is_last in _iter_blocks(swin):
        query, key, value = (block.get_submodule(name) for name in QKV)
        width_out = query.out_features + key.out_features + value.out_features
        total += MTLoRAStreamLinear.parameter_count(query.in_features, width_out, 0, config)
        for linear in (block.get_submodule(name) for name in STREAMED):
            total += MTLoRAStreamLinear.parameter_count(
                linear.in_features, linear.out_features, num_tasks if is_last else 0, config
            )
    return total
