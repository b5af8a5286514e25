"""Settings written as YAML: files and the values of `--set`."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.errors import ConfigError
from pipeline.uris import HIDDEN, holds_credentials

# far above any config, and small enough that a refusal takes less than a second
MAX_CHARACTERS = 300_000
MAX_VALUES = 10_000  # keys included, and each alias counted as all that it stands for
MAX_DEPTH = 50
MAX_NUMBER_CHARACTERS = 40

SHOWN_PROBLEMS = 20
SHOWN_CHARACTERS = 80  # of a path of keys, or a value, in an error message

_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))
_KINDS = {
    _INT: "a whole number",
    _FLOAT: "a number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:timestamp": "a date of the calendar",
}


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
        with path.open(encoding="utf-8") as file:
            value = parse_yaml(file.read(MAX_CHARACTERS + 1))
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
        ValueError: The text is not YAML or too large, or has values that YAML reads as something else: a key
            written twice, of which it keeps the last, or an octal number. The message has line and key.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"longer than {MAX_CHARACTERS:,} characters; settings are short, check the path")
    loader = None
    try:
        loader = _SettingsLoader(text)
        root = _compose(loader)
        if root is None:
            return None
        if problems := [*itertools.islice(_find_problems(loader, root, ()), SHOWN_PROBLEMS)]:
            raise ValueError("; ".join(problems))
        return loader.construct_document(root)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        raise ValueError(_describe_marked(error, loader)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: character {error.character:#04x} is not allowed") from error


def _compose(loader: "_SettingsLoader") -> yaml.Node | None:
    """Return the root of the loader's text; None if the text has no value."""
    try:
        return loader.get_single_node()
    except (OverflowError, ValueError) as error:  # PyYAML gives what follows \U to chr(), a version to int()
        mark = loader.get_mark()  # type: ignore[no-untyped-call]
        problem = "number out of range; the last character is \\U0010FFFF"
        raise yaml.scanner.ScannerError(None, None, problem, mark) from error  # type: ignore[arg-type]


class _SettingsLoader(yaml.SafeLoader):
    """Loader that refuses nesting, aliases and sizes that no settings need."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path: list[str] = []  # keys from the root to the value that is read
        self.paths: dict[tuple[int, int], tuple[str, ...]] = {}  # of each value, by its line and column
        self.num_values = 0
        self.alias_sizes: dict[int, int] = {}  # values in a finished node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one value, or the value that an alias stands for."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.path.append(_name_of(index))
        if len(self.path) > MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} levels deep", event)
        before, is_alias = self.num_values, isinstance(event, yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if is_alias and id(node) not in self.alias_sizes:
            raise _refused("contains itself", event)
        self.num_values += self.alias_sizes[id(node)] if is_alias else 1
        if self.num_values > MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES:,} values, with what aliases stand for", event)
        if not is_alias:
            self.alias_sizes[id(node)] = self.num_values - before
        self.path.pop()
        return node


def _name_of(index: Any) -> str:
    """Return the name of a mapping's key or a list's number; empty where there is none."""
    if isinstance(index, yaml.Node):
        return str(index.value) if isinstance(index, yaml.ScalarNode) else "?"
    return "" if index is None else str(index)


def _refused(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


def shorten(text: str) -> str:
    """Return the start of a user's long text, for an error message; hide one that may hold a password."""
    if holds_credentials(text, "uri"):
        return HIDDEN
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _describe_marked(error: yaml.MarkedYAMLError, loader: _SettingsLoader | None) -> str:
    """Return the place and the problem alone: the lines that YAML quotes may hold a password."""
    mark = error.problem_mark or error.context_mark
    path: Sequence[str] = loader.path if loader else ()
    if loader and mark:
        path = loader.paths.get((mark.line, mark.column), path)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{_describe_path(path)}{error.problem or error.context}"


def _describe_path(path: Sequence[str]) -> str:
    key = ".".join(name for name in path if name)
    return f"{shorten(key)}: " if key else ""


def _find_problems(loader: _SettingsLoader, node: yaml.Node, path: tuple[str, ...]) -> Iterator[str]:
    """Yield a sentence for each key that a mapping has twice, and each scalar that is not what it seems."""
    loader.paths[node.start_mark.line, node.start_mark.column] = path
    if isinstance(node, yaml.ScalarNode):
        if problem := _describe_scalar(loader, node):
            yield f"line {node.start_mark.line + 1}: {_describe_path(path)}{problem}"
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _find_problems(loader, item, (*path, str(number)))
    elif isinstance(node, yaml.MappingNode):
        yield from _repeated_keys(loader, node, path)
        for key, item in node.value:
            name = (*path, _name_of(key))
            yield from _find_problems(loader, key, name)
            yield from _misread_key(loader, key, name)
            yield from _find_problems(loader, item, name)


def _repeated_keys(loader: _SettingsLoader, node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[str]:
    """Yield a sentence for each key that a mapping has twice, in any spelling."""
    seen: dict[Any, yaml.Node] = {}
    for key, _ in node.value:
        identity = _key_identity(loader, key)
        if first := seen.get(identity):
            lines = [mark.line + 1 for mark in (first.start_mark, key.start_mark)]
            place = "lines {} and {}".format(*lines) if lines[0] != lines[1] else f"line {lines[0]}"
            name, known = (_name_of(each) for each in (key, first))
            spelling = "" if name == known else f" (as {shorten(known)} too)"
            yield f"{shorten('.'.join([*path, name]))} is written twice{spelling}, in {place}; keep one"
        seen.setdefault(identity, key)


def _key_identity(loader: _SettingsLoader, key: yaml.Node) -> Any:
    """Return a value that is equal for keys of which a dictionary keeps one, such as 1, 0x1 and 1.0."""
    if isinstance(key, yaml.ScalarNode) and _describe_scalar(loader, key) is None and key.tag != _MERGE:
        return loader.construct_object(key)  # type: ignore[no-untyped-call]
    return key.tag, str(key.value)  # refused for another reason, or a merge


def _misread_key(loader: _SettingsLoader, key: yaml.Node, path: tuple[str, ...]) -> Iterator[str]:
    """Yield a sentence for a key of which YAML keeps a number but not the spelling, such as 0x1F or 1_000."""
    if isinstance(key, yaml.ScalarNode) and key.tag == _INT and _describe_scalar(loader, key) is None:
        value, text = loader.construct_object(key), shorten(key.value)  # type: ignore[no-untyped-call]
        if str(value) != key.value:
            place = f"line {key.start_mark.line + 1}: {_describe_path(path)}"
            yield f"{place}YAML reads the key {text} as {value}; write {value}, or quote it to keep the text"


def _describe_scalar(loader: _SettingsLoader, node: yaml.ScalarNode) -> str | None:
    """Return the problem of a scalar, None if there is none."""
    text, shown = node.value, shorten(node.value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "half of a character (\\uD800 to \\uDFFF); write it whole, such as \\U0001F600"
    if node.tag in (_INT, _FLOAT) and len(text) > MAX_NUMBER_CHARACTERS:
        return f"number of {len(text):,} characters; write at most {MAX_NUMBER_CHARACTERS}, or quote it"
    if node.tag == _MERGE:
        return None
    loader.recursive_objects.pop(node, None)  # a conversion that failed leaves its node there
    try:
        value = loader.construct_object(node)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        return f"{error.problem}; correct it, or quote it to keep the text"
    except Exception:  # PyYAML's conversions of a text raise many classes
        return f"{shown} is not {_KINDS.get(node.tag, 'valid')}; correct it, or quote it to keep the text"
    if node.tag == _INT and re.fullmatch(r"[-+]?0[0-7_]+", text):
        return f"YAML reads {shown} as the octal number {value}; write {value}, or quote it to keep the text"
    if node.tag in (_INT, _FLOAT) and ":" in text:
        return f"YAML reads {shown} to base 60, as {value}; write {value}, or quote it to keep the text"
    return None


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
