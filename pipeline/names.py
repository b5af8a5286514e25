"""The rule for names of runs, tasks, models and partitions; buckets and credentials in URLs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_plus

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


# up to the last @ of the host part; a password may hold / if an account name and a colon stand before it
_ACCOUNT = re.compile(r"(?<=:)//(?:[^/\s:'\"]*:[^\s'\"]*|[^/\s'\"]*)@")

_SECRET_NAMES = (
    r"[\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|(?:access|api)[_-]?key)[\w.-]*"
)
_SECRET_PARAMETER = re.compile(
    rf"(?<=[?&;])({_SECRET_NAMES}|pass|sig|sas)=[^&;\s'\"]+", re.IGNORECASE
)  # such as ?sig=... of a signed URL


def holds_credentials(url: str) -> bool:
    """Return whether a URL holds an account, such as name:password@ or token@, or a secret parameter."""
    # ODBC's settings are one encoded parameter, with parameters in it
    return bool(_ACCOUNT.search(url) or _SECRET_PARAMETER.search(unquote_plus(url)))


def hide_credentials(text: str) -> str:
    """Return a text without the accounts and secrets of the URLs in it."""
    return _SECRET_PARAMETER.sub(r"\1=***", _ACCOUNT.sub("//***@", text))
