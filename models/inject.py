"""Put adapters into a trunk: swap the named linears, freeze everything else."""

import torch
from torch import nn

from models.adapters.mtl_lora import MTLLoRALinear, TaskRouting
from models.config import AdapterConfig


def inject(trunk: nn.Module, config: AdapterConfig, num_tasks: int, seed: int) -> TaskRouting:
    """Freeze `trunk` and give each linear named by `config.target_modules` an adapter, in place.

    Returns what tells the adapters the task of each row. ValueError: a target names no linear of the trunk.
    """
    trunk.requires_grad_(False)
    routing = TaskRouting()
    generator = torch.Generator().manual_seed(seed)
    for name in target_names(trunk, config):
        parent_name, _, attribute = name.rpartition(".")
        parent = trunk.get_submodule(parent_name)
        setattr(parent, attribute, MTLLoRALinear(getattr(parent, attribute), num_tasks, config, routing, generator))
    return routing


def target_names(trunk: nn.Module, config: AdapterConfig) -> list[str]:
    """Full names of the linears to adapt, in the trunk's order."""
    linears = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    for target in config.target_modules:
        if not any(names_linear(target, name) for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(f"adapter.target_modules names {target!r}, which is no linear of this backbone; its linears: {', '.join(known)}")
    return [name for name in linears if any(names_linear(target, name) for target in config.target_modules)]


def names_linear(target: str, name: str) -> bool:
    """Whether `target` is `name` or its last dotted parts."""
    return name == target or name.endswith("." + target)


def adapted_layers(module: nn.Module) -> dict[str, MTLLoRALinear]:
    """The adapted layers of a model by full name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, MTLLoRALinear)}
