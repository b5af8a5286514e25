"""Adapter methods. Each is one module with its config class, its layer and, last, its registration."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.adapters.adapted_linear import AdaptedLinear
    from models.config import AdapterConfig


@dataclass(frozen=True)
class AdapterMethod:
    """The config class and the layer of an adapter method.

    `layer(base, num_tasks, config, routing, generator)` puts an adapter around the linear `base`.
    """

    config: type[AdapterConfig]
    layer: type[AdaptedLinear]


METHODS: dict[str, AdapterMethod] = {}  # by the config's `method`; filled as the modules are imported


def register_method(config: type[AdapterConfig], layer: type[AdaptedLinear]) -> None:
    """Register a method under the default of its config's `method`.

    Raises:
        ValueError: Another method has the name.
    """
    defaults = {field.name: field.default for field in fields(config)}
    name = str(defaults["method"])
    registered = METHODS.setdefault(name, AdapterMethod(config, layer))
    if registered.config is not config:
        classes = (registered.config, config)
        names = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in classes)
        raise ValueError(f"two adapter methods are called {name!r}: {names}; rename one")


def load_methods() -> None:
    """Import every module of this package, which registers its methods."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
