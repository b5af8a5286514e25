"""Read a config from YAML with its overrides; every problem is named in one error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from models.config import AdapterConfig
from pipeline.config.error_messages import explain, read_yaml_mapping
from pipeline.config.run import Adapter, RunConfig
from pipeline.errors import ConfigError


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file with `a.b=value` overrides applied. ConfigError says which setting, where,
    and what it may be.
    """
    return build_config(read_settings(path, overrides), str(path))


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain settings of a config, as they were written and overridden, not checked yet."""
    value = read_yaml_mapping(
        path, "config", "copy jobs/configs/demo.yaml and change it", "of settings, such as `name: demo`"
    )
    for override in overrides:
        apply_override(value, override)
    return value


def build_config(value: dict[str, Any], where: str) -> RunConfig:
    """The checked config of plain settings; ConfigError lists every problem."""
    try:
        return RunConfig.model_validate(value)
    except ValidationError as error:
        problems = error.errors()
        # a list whose items are all wrong is reported as too short as well
        inner = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
        told = [
            explain(problem, RunConfig)
            for problem in problems
            if problem["type"] != "default_factory_not_called"
            and not (problem["type"] == "too_short" and problem["loc"] in inner)
        ]
        raise ConfigError(f"{where}: " + "; ".join(told)) from error


def build_adapter(value: dict[str, Any]) -> AdapterConfig:
    """The adapter config of plain settings, as bundles keep them."""
    adapter: AdapterConfig = TypeAdapter(Adapter).validate_python(value)
    return adapter


def apply_override(value: dict[str, Any], override: str) -> None:
    """Set `a.b=value` (YAML on the right) in nested settings; list items by number, as in
    tasks.0.template=...
    """
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(
            f"--set {override!r} is not of the form setting=value, such as optimizer.learning_rate=1e-4"
        )
    *parents, last = path.split(".")
    target: Any = value
    try:
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target.setdefault(key, {})
        # pydantic reads numbers out of texts such as 1e-4, which YAML 1.1 takes for a string
        target[int(last) if isinstance(target, list) else last] = yaml.safe_load(text)
    except (IndexError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {override!r} does not fit the config: {error}") from error
