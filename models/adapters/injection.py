"""Put adapters into a trunk: swap the named linears, freeze everything else."""

from typing import Any

import torch
from torch import nn

from models.adapters import METHODS
from models.adapters.adapted_linear import AdaptedLinear
from models.adapters.routing import TaskRouting
from models.config import AdapterConfig


def inject(trunk: nn.Module, config: AdapterConfig, num_tasks: int, seed: int) -> TaskRouting:
    """Freeze `trunk` and give each linear that `config` names an adapter, in place.

    Returns what tells the adapters the task of each row. ValueError: the config names a linear or a layer
    that the trunk has not.
    """
    trunk.requires_grad_(False)
    routing = TaskRouting()
    generator = torch.Generator().manual_seed(seed)
    for name, layer_config in targets(trunk, config):
        base = trunk.get_submodule(name)
        build: Any = METHODS[layer_config.method].layer
        replace_module(trunk, name, build(base, num_tasks, layer_config, routing, generator))
    return routing


def targets(trunk: nn.Module, config: AdapterConfig) -> list[tuple[str, AdapterConfig]]:
    """Each linear to adapt, in the trunk's order, with the config of its layer. ValueError: as `inject`
    says.
    """
    layers_name, layers = transformer_layers(trunk)
    chosen = config.layers_to_transform
    if chosen is not None and max(chosen) >= len(layers):
        raise ValueError(
            f"adapter.layers_to_transform names layer {max(chosen)}, this backbone's are 0 to "
            f"{len(layers) - 1}"
        )
    placed = [(name, layer_index(layers_name, name)) for name in target_names(trunk, config)]
    found = [
        (name, config.at_layer(index, len(layers)))
        for name, index in placed
        if chosen is None or index in chosen
    ]
    if not found:
        raise ValueError(
            "adapter.target_modules, exclude_modules and layers_to_transform leave no linear of this "
            "backbone to adapt"
        )
    if not any(layer_config.method == config.method for _, layer_config in found):
        raise ValueError(
            "adapter.layers_to_transform leaves out all of the last adapter.task_layers layers, so that "
            "no layer would know the task"
        )
    return found


def target_names(trunk: nn.Module, config: AdapterConfig) -> list[str]:
    """Full names of the linears that `target_modules` means, in the trunk's order. "all-linear": those inside
    the trunk's layers.
    """
    every = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    linears = [
        name for name in every if not any(names_linear(excluded, name) for excluded in config.exclude_modules)
    ]
    if config.target_modules == "all-linear":
        layers_name = transformer_layers(trunk)[0]
        return [name for name in linears if layer_index(layers_name, name) is not None]
    for target in config.target_modules:
        if not any(names_linear(target, name) for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(
                f"adapter.target_modules names {target!r}, which is no linear of this backbone; its "
                f"linears: {', '.join(known)}"
            )
    return [name for name in linears if any(names_linear(target, name) for target in config.target_modules)]


def names_linear(target: str, name: str) -> bool:
    """Whether `target` is `name` or its last dotted parts."""
    return name == target or name.endswith("." + target)


def transformer_layers(trunk: nn.Module) -> tuple[str, nn.ModuleList]:
    """The trunk's layers and their name: the module list that holds the most linears. ValueError: it has
    none.
    """
    lists = [(name, module) for name, module in trunk.named_modules() if isinstance(module, nn.ModuleList)]
    # of nested lists the outer one, which comes first
    best = max(
        lists,
        key=lambda found: sum(isinstance(module, nn.Linear) for module in found[1].modules()),
        default=None,
    )
    if best is None:
        raise ValueError("this backbone has no list of layers; use a transformer")
    return best


def layer_index(layers_name: str, name: str) -> int | None:
    """The layer that a module of the trunk lies in; None outside the layers."""
    return (
        int(name.removeprefix(layers_name + ".").partition(".")[0])
        if name.startswith(layers_name + ".")
        else None
    )


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one that `name` names below `root`."""
    parent_name, _, attribute = name.rpartition(".")
    setattr(root.get_submodule(parent_name), attribute, module)


def adapted_layers(module: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers of a model by full name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, AdaptedLinear)}


def adapter_parameter_count(trunk: nn.Module, config: AdapterConfig, num_tasks: int) -> int:
    """Trainable numbers that `inject` would add, from shapes alone."""
    linears = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.Linear)}
    return sum(
        METHODS[layer_config.method].layer.parameter_count(
            linears[name].in_features, linears[name].out_features, num_tasks, layer_config
        )
        for name, layer_config in targets(trunk, config)
    )
