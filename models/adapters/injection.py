"""Injection of adapters into a trunk: replace the configured linears and freeze everything else."""

from typing import Any

import torch
from torch import nn

from models.adapters import METHODS
from models.adapters.adapted_linear import AdaptedLinear
from models.adapters.conv1d import linear_from_conv1d, linear_shape
from models.adapters.routing import TaskRouting
from models.config import AdapterConfig

Targets = list[tuple[str, AdapterConfig]]  # full name of each linear to adapt, and its adapter's config


def inject(trunk: nn.Module, config: AdapterConfig, num_tasks: int, seed: int) -> TaskRouting:
    """Freeze `trunk` and put an adapter around each configured linear, in place.

    Returns:
        The routing that gives the adapters the task of each row.

    Raises:
        ValueError: The config names a linear or a layer that the trunk does not have.
    """
    return inject_targets(trunk, find_targets(trunk, config), num_tasks, seed)


def inject_targets(trunk: nn.Module, targets: Targets, num_tasks: int, seed: int) -> TaskRouting:
    """Freeze `trunk`, put an adapter around each target, in place, and return their routing."""
    trunk.requires_grad_(False)
    routing = TaskRouting()
    generator = torch.Generator().manual_seed(seed)
    for name, layer_config in targets:
        base = linear_from_conv1d(trunk.get_submodule(name))
        build: Any = METHODS[layer_config.method].layer
        trunk.set_submodule(name, build(base, num_tasks, layer_config, routing, generator))
    return routing


def adapted_layers(module: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers of a model by full name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, AdaptedLinear)}


def adapter_parameter_count(trunk: nn.Module, config: AdapterConfig, num_tasks: int) -> int:
    """Return the number of trainable parameters that `inject` would add; needs shapes only."""
    total = 0
    for name, layer_config in find_targets(trunk, config):
        shape = linear_shape(trunk.get_submodule(name))
        assert shape is not None, f"{name} is no linear"
        total += METHODS[layer_config.method].layer.parameter_count(*shape, num_tasks, layer_config)
    return total


def find_targets(trunk: nn.Module, config: AdapterConfig) -> Targets:
    """Return the linears to adapt and the adapter config of each, in the trunk's order.

    Raises:
        ValueError: The config names a linear or a layer that the trunk does not have, or leaves none.
    """
    layers_name, layers = transformer_layers(trunk)
    chosen = config.layers_to_transform
    if chosen is not None and max(chosen) >= len(layers):
        raise ValueError(
            f"adapter.layers_to_transform names layer {max(chosen)}, this backbone has layers 0 to "
            f"{len(layers) - 1}; name layers that it has"
        )
    targets = []
    for name in target_linear_names(trunk, config):
        index = _layer_index(layers_name, name)
        if chosen is None or index in chosen:
            targets.append((name, config.for_layer(index, len(layers))))
    if not targets:
        raise ValueError(
            "adapter.target_modules, exclude_modules and layers_to_transform leave no linear of this "
            "backbone to adapt; name others"
        )
    if not any(layer_config.method == config.method for _, layer_config in targets):
        raise ValueError(
            "adapter.layers_to_transform leaves out all of the last adapter.task_layers layers, so no layer "
            "depends on the task; add one of them"
        )
    return targets


def target_linear_names(trunk: nn.Module, config: AdapterConfig) -> list[str]:
    """Return the full names of the linears that `target_modules` selects, in the trunk's order.

    "all-linear" selects all linears inside the transformer layers. Linears of other modalities, such as those
    of a vision tower, are never selected.
    """
    linears = [name for name, module in text_modules(trunk).items() if linear_shape(module) is not None]
    allowed = [
        name for name in linears if not any(is_suffix(excluded, name) for excluded in config.exclude_modules)
    ]
    if config.target_modules == "all-linear":
        layers_name = transformer_layers(trunk)[0]
        return [name for name in allowed if _layer_index(layers_name, name) is not None]
    for target in config.target_modules:
        if not any(is_suffix(target, name) for name in allowed):
            if any(is_suffix(target, name) for name in linears):
                raise ValueError(
                    f"adapter.exclude_modules leaves out all linears of target {target!r}; remove it from "
                    "adapter.exclude_modules or adapter.target_modules"
                )
            raise ValueError(_describe_unknown_target(trunk, target, allowed))
    return [name for name in allowed if any(is_suffix(target, name) for target in config.target_modules)]


def text_modules(trunk: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a trunk by name, without those of other modalities.

    Those are recognised by configs of their own.
    """
    config: Any = getattr(trunk, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    text_config_classes = {type(config), type(text_config), type(None)}
    modules = dict(trunk.named_modules())
    other_models = [
        name
        for name, module in modules.items()
        if type(getattr(module, "config", None)) not in text_config_classes
    ]
    if text_config is not config:
        text_models = [
            name for name, module in modules.items() if getattr(module, "config", None) is text_config
        ]
        prefix = f"{text_models[0]}." if text_models else ""  # of the outermost one
    else:
        prefix = ""
    return {
        name: module
        for name, module in modules.items()
        if name.startswith(prefix)
        and not any(name == other or name.startswith(other + ".") for other in other_models)
    }


def transformer_layers(trunk: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the transformer layers and their name: the module list with the most linears.

    Raises:
        ValueError: The trunk has no module list.
    """
    lists = [
        (name, module) for name, module in text_modules(trunk).items() if isinstance(module, nn.ModuleList)
    ]
    # with equal counts max returns the first: of nested lists the outer one
    best = max(
        lists,
        key=lambda item: sum(linear_shape(module) is not None for module in item[1].modules()),
        default=None,
    )
    if best is None:
        raise ValueError("this backbone has no list of layers; use a transformer")
    return best


def fused_experts(trunk: nn.Module) -> list[str]:
    """Return the attribute names of weights that hold all experts in one tensor, such as gate_up_proj.

    They are parameters and not modules, so no adapter can be put around one.
    """
    return sorted(
        {
            name.rpartition(".")[2]
            for name, parameter in trunk.named_parameters()
            if parameter.dim() == 3 and "expert" in name
        }
    )


def _describe_unknown_target(trunk: nn.Module, target: str, linears: list[str]) -> str:
    """Return the message about a target that no linear of the backbone has."""
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linears})) or "none"
    message = (
        f"adapter.target_modules names {target!r}, which is no linear of this backbone; its linears: {known}"
    )
    fused = fused_experts(trunk)
    if fused:
        message += (
            f". Its experts hold {' and '.join(fused)} of all experts as one tensor, which cannot be adapted"
        )
    return message


def is_suffix(target: str, name: str) -> bool:
    """Return whether `target` is `name` or its last dotted parts."""
    return name == target or name.endswith("." + target)


def _layer_index(layers_name: str, name: str) -> int | None:
    """Return the index of the transformer layer that a module lies in, None outside the layers."""
    prefix = layers_name + "."
    return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else None
