"""Check of a config's paths before a command goes to a cluster.

A relative path is resolved in the folder where the command is typed, and means another place on a cluster.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.paths import BUCKET_SETTINGS
from pipeline.config.run import RunConfig, is_path
from pipeline.errors import ConfigError


def check_paths(config: RunConfig, given: dict[str, Any]) -> None:
    """Raise ConfigError if paths of a config are relative.

    Args:
        config: The validated config; its paths are absolute already.
        given: The settings as they stand in the file and in `--set`.
    """
    relative = dict(relative_paths(config.model_dump(), given, ""))
    source = given.get("backbone", {}).get("source", "")
    if is_path(source) and not source.startswith(("/", "~")):
        relative["backbone.source"] = source
    given_uri = str((given.get("registry") or {}).get("tracking_uri") or "")
    if is_relative_sqlite(given_uri):
        relative["registry.tracking_uri"] = given_uri
    if relative:
        settings = ", ".join(f"{name} ({text})" for name, text in relative.items())
        raise ConfigError(
            f"paths relative, which a cluster cannot resolve: {settings}; write absolute paths that all its "
            f"machines see, or s3://bucket/prefix for {BUCKET_SETTINGS}"
        )


def relative_paths(value: Any, given: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (setting, text) for each path of a config part that was given as relative, or not given.

    Args:
        value: The part, with defaults filled in.
        given: The same part as it was written; None if it was not.
        prefix: The part's name, such as "data"; empty for the whole config.
    """
    if isinstance(value, dict):
        given_dict = given if isinstance(given, dict) else {}
        for name, inner in value.items():
            yield from relative_paths(inner, given_dict.get(name), f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list | tuple):
        given_items = given if isinstance(given, list | tuple) else [None] * len(value)
        for number, inner in enumerate(value):
            yield from relative_paths(inner, given_items[number], f"{prefix}.{number}")
    elif isinstance(value, Path):
        if given is None:
            yield prefix, f"not set, so {value.name} of this folder"
        elif not Path(given).is_absolute():
            yield prefix, str(given)


def is_relative_sqlite(uri: str) -> bool:
    """Return True if a tracking URI is an sqlite file whose path is relative, or starts at a home folder."""
    scheme, _, path = uri.partition("://")
    return scheme.startswith("sqlite") and not path.startswith("//")
