"""Files of settings, and their problems in sentences: which setting, where, and what it may be."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from pipeline.config.extensions import method_blocks, source_blocks
from pipeline.errors import ConfigError

# settings that come in kinds: the registered blocks by kind, and the place of the kind in pydantic's path
KINDS = {"sources": (source_blocks, 2), "adapter": (method_blocks, 1)}


def read_yaml_mapping(path: Path, what: str, absent: str, wanted: str) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError calling the file `what`: not there (`absent` says what to do),
    not readable, or not `wanted`.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} does not exist; {absent}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{what} {path} is not readable YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what} {path} must be a YAML mapping {wanted}")
    return value


def explain(problem: Any, root: Any) -> str:
    """One of pydantic's problems with a config of type `root`; an unknown key gets the nearest known one."""
    path, kind_name = without_kind(problem["loc"])
    name = ".".join(str(part) for part in path)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        parent = path[:-1]
        known = settings_under(parent, root, kind_name)
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = (
            f"; did you mean {'.'.join([*map(str, parent), near[0]])}?"
            if near
            else f"; known here: {', '.join(known)}"
        )
        of_kind = f" of {kind_name}" if kind_name and path[:1] == ["adapter"] else ""
        if of_kind and str(path[-1]) in settings_under(parent, root):
            hint += (
                "; another method takes it: set the block whole, as in --set 'adapter={method: "
                f"{kind_name}}}'"
            )
        return f"{name} is not a setting{of_kind}{hint}"
    if problem["type"] == "missing":
        return f"{name} is required"
    if problem["type"] == "union_tag_invalid":
        tag, given, known = (
            problem["ctx"]["discriminator"].strip("'"),
            problem["ctx"]["tag"],
            problem["ctx"]["expected_tags"].replace("'", ""),
        )
        near = difflib.get_close_matches(given, known.split(", "), n=1)
        return f"{name}.{tag} is {given!r}" + (
            f"; did you mean {near[0]}? known: {known}" if near else f"; known: {known}"
        )
    shown = name and not isinstance(problem["input"], dict) and not field_types(type(problem["input"]))
    given = f" (given {problem['input']!r})" if shown else ""
    message = problem["msg"].removeprefix("Value error, ")
    return message + given if message.startswith(f"{name}.") or not name else f"{name}: {message}{given}"


def without_kind(loc: Sequence[str | int]) -> tuple[list[str | int], str | None]:
    """pydantic's path without the name of a kind in it, which is no setting; and that name."""
    place = KINDS.get(str(loc[0]), (None, len(loc)))[1] if loc else 0
    if len(loc) <= place:
        return list(loc), None
    return [*loc[:place], *loc[place + 1 :]], str(loc[place])


def settings_under(path: Sequence[str | int], root: Any, kind_name: str | None = None) -> list[str]:
    """Names of the settings below a dotted path of a config, of one kind where they come in kinds."""
    blocks: list[Any] = [root]
    for place, part in enumerate(path):
        if place == 0 and part in KINDS:
            of_kinds = KINDS[str(part)][0]()
            blocks = [of_kinds[kind_name]] if kind_name in of_kinds else list(of_kinds.values())
        elif isinstance(part, str):
            blocks = [inner for block in blocks for inner in blocks_in(field_types(block).get(part))]
    return sorted({name for block in blocks for name in field_types(block)})


def field_types(kind: Any) -> dict[str, Any]:
    """Field names and types of a pydantic model or a dataclass."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {
        name: field.type
        for name, field in getattr(kind, "__dataclass_fields__", {}).items()
        if field._field_type.name == "_FIELD"
    }


def blocks_in(annotation: Any) -> Iterator[Any]:
    """The config blocks inside a type such as tuple[Task, ...] or A | B."""
    if isinstance(annotation, type) and field_types(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from blocks_in(inner)
