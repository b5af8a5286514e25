"""The one rule for names, and which places are buckets."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ConfigError

NAME_RULE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_name(name: str, what: str) -> str:
    """Return `name` if it obeys the one rule for names of runs, tasks, models and partitions; ConfigError if
    not.
    """
    if not NAME_RULE.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} is not a valid name; use 1 to 63 of a-z, 0-9, _ and -, starting with a "
            "letter or digit"
        )
    return name


BUCKET = "s3://"


def is_bucket(place: Path | str) -> bool:
    """Whether a place is in an object store."""
    return str(place).startswith(BUCKET)
