"""Problems that pydantic finds in settings, as sentences for users."""

import dataclasses
import datetime
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from pipeline.config.credentials import TRACKING_URI
from pipeline.config.extensions import method_blocks, source_blocks
from pipeline.uris import holds_credentials

Loc = Sequence[str | int]  # keys and list indices from the root to a setting


@dataclasses.dataclass(frozen=True)
class TaggedSetting:
    """A setting whose block is one of several registered blocks, chosen by a tag."""

    load_blocks: Callable[[], Mapping[str, type[Any]]]  # blocks by tag
    tag_position: int  # index of the tag in pydantic's loc


TAGGED_SETTINGS = {
    "sources": TaggedSetting(source_blocks, tag_position=2),  # ("sources", 0, "esci", "path")
    "adapter": TaggedSetting(method_blocks, tag_position=1),  # ("adapter", "lora", "rank")
}


def describe_problem(problem: ErrorDetails, root: type[Any]) -> str:
    """Return a sentence for one of pydantic's problems with a config of type `root`."""
    path, tag = split_tag(problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _describe_unknown_setting(path, tag, root)
    if problem["type"] == "missing":
        return f"{_dotted(path)} is required"
    if problem["type"] == "union_tag_invalid":
        return _describe_unknown_tag(path, problem["ctx"])
    return _describe_wrong_value(path, problem)


def split_tag(loc: Loc) -> tuple[list[str | int], str | None]:
    """Split pydantic's loc into the path of the setting and the tag of its block, None if it has none."""
    setting = TAGGED_SETTINGS.get(str(loc[0])) if loc else None
    if setting is None or len(loc) <= setting.tag_position:
        return list(loc), None
    position = setting.tag_position
    return [*loc[:position], *loc[position + 1 :]], str(loc[position])


def setting_names(path: Loc, root: type[Any], tag: str | None = None) -> list[str]:
    """Return the names of the settings below a path; those of all tags if `tag` is None or unknown."""
    blocks: list[Any] = [root]
    for position, part in enumerate(path):
        if position == 0 and part in TAGGED_SETTINGS:
            blocks_by_tag = TAGGED_SETTINGS[str(part)].load_blocks()
            blocks = list(blocks_by_tag.values())
            if tag is not None and tag in blocks_by_tag:
                blocks = [blocks_by_tag[tag]]
        elif isinstance(part, str):
            blocks = [inner for block in blocks for inner in nested_blocks(field_types(block).get(part))]
    return sorted({name for block in blocks for name in field_types(block)})


def field_types(block: Any) -> dict[str, Any]:
    """Return names and types of the fields of a pydantic model or a dataclass; empty for other types."""
    if isinstance(block, type) and issubclass(block, BaseModel):
        return {name: field.annotation for name, field in block.model_fields.items()}
    if dataclasses.is_dataclass(block):
        return {field.name: field.type for field in dataclasses.fields(block)}
    return {}


def nested_blocks(annotation: Any) -> Iterator[Any]:
    """Yield the config blocks inside a type such as tuple[Task, ...] or A | B."""
    if isinstance(annotation, type) and field_types(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from nested_blocks(inner)


def _dotted(path: Loc) -> str:
    return ".".join(str(part) for part in path)


def _describe_unknown_setting(path: Loc, tag: str | None, root: type[Any]) -> str:
    *parent, name = path
    known = setting_names(parent, root, tag)
    nearest = difflib.get_close_matches(str(name), known, n=1)
    if nearest:
        hint = f"; did you mean {_dotted([*parent, nearest[0]])}?"
    else:
        hint = f"; known here: {', '.join(known)}"
    if tag is None or path[0] != "adapter":
        return f"{_dotted(path)} is not a setting{hint}"
    if str(name) in setting_names(parent, root):
        hint += f"; another method takes it: set the block whole, as in --set 'adapter={{method: {tag}}}'"
    return f"{_dotted(path)} is not a setting of {tag}{hint}"


def _describe_quoting(value: Any) -> str:
    """Return advice for a text that YAML has read as something else; empty if it has not."""
    if isinstance(value, bool):
        return "; YAML reads yes, no, on, off, true and false as truth values: quote it, such as 'no'"
    if isinstance(value, int | float | datetime.date):
        kind = "date" if isinstance(value, datetime.date) else "number"
        return f"; YAML reads it as a {kind}: quote it, as '{value}'"
    return "; YAML reads null and ~ as no value: quote it, as 'null'" if value is None else ""


def _describe_unknown_tag(path: Loc, context: Mapping[str, Any]) -> str:
    setting = _dotted([*path, context["discriminator"].strip("'")])
    known = context["expected_tags"].replace("'", "")
    nearest = difflib.get_close_matches(context["tag"], known.split(", "), n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{setting} is {context['tag']!r}; {hint}known: {known}"


def _describe_wrong_value(path: Loc, problem: ErrorDetails) -> str:
    setting, value = _dotted(path), problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(value, str) and holds_credentials(value, "uri"):
        return f"{setting}: value is not valid, and not shown: it may hold a password; correct it"
    if setting and setting != TRACKING_URI and not isinstance(value, dict) and not field_types(type(value)):
        message += f" (given {value!r})"
    if problem["type"] in ("string_type", "invalid_key"):
        message += _describe_quoting(path[-1] if problem["type"] == "invalid_key" else value)
    if not setting or message.startswith(f"{setting}."):
        return message
    return f"{setting}: {message}"
