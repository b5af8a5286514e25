"""The rule for names of runs, tasks, models and partitions; buckets."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ConfigError

NAME_RULE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_name(name: str, kind: str) -> str:
    """Return a valid name unchanged.

    Args:
        name: Name of a run, task, model or partition.
        kind: The noun for the error message, such as "task".

    Raises:
        ConfigError: The name breaks the rule.
    """
    if not NAME_RULE.fullmatch(name):
        raise ConfigError(
            f"{kind} {name!r} is not a valid name; use 1 to 63 of a-z, 0-9, _ and -, starting with a "
            "letter or digit"
        )
    return name


BUCKET_SCHEME = "s3://"


def is_bucket(location: Path | str) -> bool:
    """Return True for a URL of an object store, False for a path."""
    return str(location).startswith(BUCKET_SCHEME)
