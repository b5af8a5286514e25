"""Read a config from a YAML file and overrides; report all problems in one error."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.config import AdapterConfig
from pipeline.config.credentials import check_credentials
from pipeline.config.error_messages import describe_problem
from pipeline.config.extensions import method_blocks
from pipeline.config.run import RunConfig, is_present
from pipeline.config.yaml_files import booleans_taken_as_numbers, parse_yaml, read_yaml_mapping, shorten
from pipeline.errors import ConfigError
from pipeline.uris import hide_argument


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of a YAML file with `a.b=value` overrides.

    Raises:
        ConfigError: The file or a setting is wrong; the message names every problem.
    """
    return build_config(read_settings(path, overrides), str(path))


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the overridden settings of a config file, not validated."""
    settings = read_yaml_mapping(
        path,
        "config",
        if_missing="copy jobs/configs/demo.yaml and change it",
        expected="of settings, such as `name: demo`",
    )
    _find_backbone_beside(path, settings)
    for override in overrides:
        apply_override(settings, override)
    return settings


def _find_backbone_beside(path: Path, settings: dict[str, Any]) -> None:
    """Resolve a relative backbone.source beside the config file if only that path exists.

    So a command means the same backbone in every folder, and not a hub id of the same name.
    """
    backbone = settings.get("backbone")
    source = backbone.get("source") if isinstance(backbone, dict) else None
    if not isinstance(source, str) or source.startswith(("/", "~", "package:")) or "\0" in source:
        return
    beside = path.parent / source
    if is_present(beside) and not is_present(Path(source)):
        settings["backbone"] = {**settings["backbone"], "source": str(beside)}


def build_config(settings: dict[str, Any], origin: str) -> RunConfig:
    """Validate plain settings.

    Args:
        settings: Settings as in a config file.
        origin: The file or command they come from, for the error message.

    Raises:
        ConfigError: A setting is wrong, or holds credentials; the message lists every problem.
    """
    check_credentials(settings, origin)
    if "adapter" in settings:
        # Checking the adapter block imports torch, which takes seconds: other problems are reported first.
        others = {name: value for name, value in settings.items() if name != "adapter"}
        try:
            RunConfig.model_validate(others)
        except ValidationError as error:
            messages = [*_describe_problems(error), "adapter is checked once these are right"]
            raise ConfigError(f"{origin}: " + "; ".join(messages)) from error
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_describe_problems(error))) from error
    if problems := [*booleans_taken_as_numbers(settings, config)]:
        raise ConfigError(f"{origin}: " + "; ".join(problems))
    return config


def _describe_problems(error: ValidationError) -> list[str]:
    problems = error.errors()
    # pydantic also reports a list as too short if all its items are wrong
    parents = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    return [
        describe_problem(problem, RunConfig)
        for problem in problems
        if problem["type"] != "default_factory_not_called"
        and not (problem["type"] == "too_short" and problem["loc"] in parents)
    ]


def build_adapter(settings: dict[str, Any]) -> AdapterConfig:
    """Return the adapter config of plain settings, as a bundle records them; no type is converted.

    Raises:
        ValueError: A setting is wrong, or the method is not installed.
    """
    blocks, method = method_blocks(), settings.get("method")
    if not isinstance(method, str) or method not in blocks:
        raise ValueError(f"method {method!r} is none of {', '.join(sorted(blocks))}")
    adapter: AdapterConfig = TypeAdapter(blocks[method]).validate_json(json.dumps(settings), strict=True)
    return adapter


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Apply an override `a.b=value` to nested settings, in place.

    The value is YAML. List items are numbered, as in tasks.0.template=...

    Raises:
        ConfigError: The override has no `=`, or its setting cannot exist.
    """
    path, separator, text = override.partition("=")
    shown = shorten(hide_argument(override, "uri"))
    if not separator or not path:
        raise ConfigError(
            f"--set {shown!r} has no =; write setting=value, such as optimizer.learning_rate=1e-4"
        )
    *parents, last = path.split(".")
    block: Any = settings
    try:
        for key in parents:
            position = _position(block, key)
            child = block.get(key) if isinstance(block, dict) else block[position]
            # a copy: blocks that a YAML anchor names twice are one object
            block[position] = {} if child is None else copy.copy(child)
            block = block[position]
        # YAML 1.1 reads 1e-4 as a string; pydantic converts it to a number
        block[_position(block, last)] = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"--set {shown!r} does not fit the config: {error}") from error


def _position(block: Any, key: str) -> str | int:
    """Return the key of a mapping, or the index in a list; raise ValueError if there cannot be one."""
    if isinstance(block, dict):
        return key
    if not isinstance(block, list):
        raise ValueError(f"{shorten(key)} is below a value, not a block of settings")
    if not (key.isascii() and key.isdigit() and int(key) < len(block)):
        raise ValueError(
            f"{shorten(key)} is not the number of an item; items are numbered from 0 to {len(block) - 1}"
        )
    return int(key)
