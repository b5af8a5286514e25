"""Settings written as YAML: files and the values of `--set`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.errors import ConfigError


def read_yaml_mapping(path: Path, kind: str, if_missing: str, expected: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: The file.
        kind: Noun for the file in error messages.
        if_missing: Advice if the file does not exist.
        expected: Description of the mapping, as in "of settings".

    Raises:
        ConfigError: The file does not exist, is not readable YAML, or is not a mapping.
    """
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{kind} {path} does not exist; {if_missing}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{kind} {path} is not readable YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{kind} {path} must be a YAML mapping {expected}")
    return value


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: The text is not YAML, or writes a setting twice, of which YAML would keep the last.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        repeated = [] if root is None else [*_repeated_keys(root, (), ())]
        if repeated:
            raise ValueError("; ".join(repeated))
        return None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_describe_marked(error)) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _describe_marked(error: yaml.MarkedYAMLError) -> str:
    """Return the place and the problem alone: the lines that YAML quotes may hold a password."""
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{error.problem or error.context}"


def _repeated_keys(node: yaml.Node, path: tuple[str, ...], parents: tuple[yaml.Node, ...]) -> Iterator[str]:
    """Yield a sentence for each key that a mapping has twice; ValueError if a node contains itself."""
    if node in parents:
        raise ValueError(f"line {node.start_mark.line + 1}: {'.'.join(path)} contains itself")
    items: list[tuple[str, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        items = [(str(number), item) for number, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        items = [(str(key.value), item) for key, item in node.value]
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, identity = key.start_mark.line + 1, _key_identity(key)
            if identity in lines:
                name, first = ".".join([*path, str(key.value)]), lines[identity]
                place = f"lines {first} and {line}" if first != line else f"line {line}"
                yield f"{name} is written twice, in {place}; keep one"
            lines.setdefault(identity, line)
    for name, item in items:
        yield from _repeated_keys(item, (*path, name), (*parents, node))


def _key_identity(key: yaml.Node) -> tuple[str, str]:
    """Return a value that is equal for keys of which a Python dictionary keeps one."""
    text = str(key.value)
    if key.tag == "tag:yaml.org,2002:bool":
        return key.tag, str(yaml.SafeLoader.bool_values[text.lower()])
    return key.tag, text


def booleans_taken_as_numbers(given: Any, taken: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a sentence for each YAML truth value that pydantic has taken as 0 or 1.

    Args:
        given: A value as it was written.
        taken: The same value in a validated config.
        path: Names from the root to the value.
    """
    if isinstance(taken, BaseModel):
        taken = taken.model_dump()
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield f"{'.'.join(path)}: {str(given).lower()} is not a number; write a number, or quote the word"
    elif isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            name = str(key)
            yield from booleans_taken_as_numbers(value, taken.get(name), (*path, name))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for number, (item, item_taken) in enumerate(zip(given, taken, strict=False)):
            yield from booleans_taken_as_numbers(item, item_taken, (*path, str(number)))
