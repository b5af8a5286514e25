"""Whether the paths of a config mean the same here and on a cluster: a relative one would be completed where
the command is typed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError


def check_paths(config: RunConfig, given: dict[str, Any]) -> None:
    """ConfigError, naming the settings: some paths are relative as they were `given`, in the file or by
    --set, or by default.
    """
    value = config.model_dump()
    wrong = dict(relative_paths(value, given, ""))
    if is_relative_backbone(config.backbone.source):
        wrong["backbone.source"] = config.backbone.source
    if is_relative_uri(config.tracking_uri):
        wrong["registry.tracking_uri"] = config.tracking_uri
    if wrong:
        named = ", ".join(f"{name} ({text})" for name, text in wrong.items())
        remedy = (
            "write absolute paths that all its machines see, or s3://bucket/prefix for data.to_score and "
            "scoring.scores"
        )
        raise ConfigError(
            f"a cluster does not know this machine's folders, and there are relative paths: {named}; {remedy}"
        )


def relative_paths(value: Any, given: Any, where: str) -> Iterator[tuple[str, str]]:
    """(setting, its text) of paths among settings that are checked, for which none, or a relative one, was
    given.
    """
    if isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            known = (
                isinstance(given, dict)
                and name in given
                or isinstance(given, list | tuple)
                and isinstance(name, int)
            )
            yield from relative_paths(
                inner, given[name] if known else None, f"{where}.{name}" if where else str(name)
            )
    elif isinstance(value, Path) and not (given is not None and Path(given).is_absolute()):
        yield where, str(given) if given is not None else f"not set, so {value.name} of this folder"


def is_relative_backbone(source: str) -> bool:
    """Whether it is a path, and no whole one; a folder that is not here looks like a hub id, and is taken for
    one.
    """
    if source.startswith(("package:", "/", "~")):
        return False
    return source.startswith(".") or source.endswith(".gguf") or Path(source).exists()


def is_relative_uri(uri: str) -> bool:
    """Whether MLflow would look for it in the folder that the command is typed in."""
    scheme, separator, path = uri.partition("://")
    if scheme.startswith("sqlite"):
        return not path.startswith("//")
    return not separator and "/" in uri and not uri.startswith(("/", "file:/"))
