"""Tiny random Swin transformers with MTLoRA pairs, and images and a loss for them."""

from typing import Any

import torch
from transformers import SwinConfig, SwinModel

from models.adapters.mtlora import MTLoRAConfig
from models.vision.swin_mtlora import TaskStreamSwin

NUM_TASKS = 3
WIDTHS = (16, 32)
MODES = ("matrix", "matrixv2")
# the last two pad their windows
IMAGE_SIZES = {(32, 32): ((8, 8), (4, 4)), (36, 44): ((9, 11), (5, 6)), (33, 49): ((9, 13), (5, 7))}


def build_trunk(**settings: Any) -> SwinModel:
    """Build a random float64 Swin transformer."""
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
    with torch.no_grad():  # new biases and tables are zero, which would hide errors
        for parameter in trunk.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return trunk


def build(
    mode: str = "matrixv2", stir: bool = False, seed: int = 0, dropout: float = 0.0, **settings: Any
) -> TaskStreamSwin:
    """Build a model; `stir` moves the up-projections away from zero."""
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
    """Return the same random float64 numbers for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    """Return two random images."""
    return random_numbers(2, 3, *size)


def weighted_sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return a loss whose gradient differs in every entry."""
    return torch.stack(
        [
            (tensor * random_numbers(*tensor.shape, seed=5 + index)).sum()
            for index, tensor in enumerate(tensors)
        ]
    ).sum()
