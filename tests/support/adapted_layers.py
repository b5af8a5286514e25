"""Small adapted linear layers of every method.

Shape legend: B rows, S tokens, D width in, O width out, T tasks.
"""

from typing import Any

import pytest
import torch
from torch import nn

from models.adapters import METHODS
from models.adapters.adapted_linear import AdaptedLinear
from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.adapters.routing import TaskRouting
from models.config import AdapterConfig

B, S, D, O, T = 6, 4, 5, 7, 4
TASK_B = torch.tensor([2, 0, 2, 1, 0, 2])  # task 3 is absent
CONFIGS: dict[str, AdapterConfig] = {
    "mtl_lora": MTLLoRAConfig(rank=3, num_up_projections=2, lora_alpha=7.0, mixture_temperature=0.3),
    "mtl_lora-diagonal": MTLLoRAConfig(
        rank=3, num_up_projections=2, lora_alpha=7.0, mixture_temperature=0.3, transform="diagonal"
    ),
    "lora": LoRAConfig(rank=3, lora_alpha=7.0),
    "lora-rslora": LoRAConfig(rank=3, lora_alpha=7.0, use_rslora=True),
    "per_task_lora": PerTaskLoRAConfig(rank=3, lora_alpha=7.0),
    "multi_lora": MultiLoRAConfig(rank=3, lora_alpha=7.0, num_pairs=2),
    "moe_lora": MoELoRAConfig(rank=6, lora_alpha=7.0, num_experts=3, task_embedding_width=5),
    "hydra_lora": HydraLoRAConfig(rank=3, lora_alpha=7.0, num_up_projections=2),
    "dora": DoRAConfig(rank=3, lora_alpha=7.0),
    "mtlora-matrix": MTLoRAConfig(rank=3, task_rank=2, shared_scale=1.5, task_scale=0.7, mode="matrix"),
    "mtlora-matrixv2": MTLoRAConfig(rank=3, task_rank=2, shared_scale=1.5, task_scale=0.7),
}
ALL = pytest.mark.parametrize("method", CONFIGS)
TASKWISE = pytest.mark.parametrize(
    "method", [name for name, config in CONFIGS.items() if METHODS[config.method].layer.TASK_DEPENDENT]
)


def build_layer(
    method: str, bias: bool = True, task: torch.Tensor = TASK_B, dtype: torch.dtype = torch.float64
) -> Any:
    """A layer at its start, on a random linear, with `task` in flight."""
    torch.manual_seed(0)
    routing = TaskRouting()
    routing.task = task
    config = CONFIGS[method]
    base = nn.Linear(D, O, bias=bias, dtype=dtype)
    layer: Any = METHODS[config.method].layer
    return layer(base, T, config, routing, torch.Generator().manual_seed(1)).eval()


def stir(layer: AdaptedLinear) -> Any:
    """Move every trained number away from its start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained(layer).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return layer


def trained_layer(method: str, **options: Any) -> Any:
    """Build a layer in float64 with every trained number stirred."""
    return stir(build_layer(method, **options)).double()


def trained(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name."""
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def random_input(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return the same random input (B, S, D) in a number format."""
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def gradients(layer: Any, output: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the inputs and of everything trained, of a weighted sum of the outputs."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tensors = {**trained(layer), "x": x}
    found = torch.autograd.grad((output * direction).sum(), list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g
        for (name, t), g in zip(tensors.items(), found, strict=True)
    }
