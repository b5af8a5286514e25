"""Adapter methods: each is one file with its config class, its layer and, last, its registration."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.adapters.adapted_linear import AdaptedLinear
    from models.config import AdapterConfig


@dataclass(frozen=True)
class AdapterMethod:
    """An adapter method: what it takes, and the layer that it puts around a linear.

    The layer is built as `layer(base, num_tasks, config, routing, generator)`.
    """

    config: type[AdapterConfig]
    layer: type[AdaptedLinear]


METHODS: dict[
    str, AdapterMethod
] = {}  # by the config's `method`; filled as the methods' modules are imported


def register_method(config: type[AdapterConfig], layer: type[AdaptedLinear]) -> None:
    """Make a method known under the `method` of its config class. ValueError: another one has the name."""
    name = str(config.__dataclass_fields__["method"].default)
    known = METHODS.setdefault(name, AdapterMethod(config, layer))
    if known.config is not config:
        both = " and ".join(f"{one.__module__}.{one.__qualname__}" for one in (known.config, config))
        raise ValueError(f"two adapter methods are called {name!r}: {both}; rename one")


def load_methods() -> None:
    """Import every module of this package, so that METHODS holds all methods it has."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
