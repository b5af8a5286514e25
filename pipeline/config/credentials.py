"""Check that a config holds no passwords.

A config is copied: to MLflow, to logs, and to the jobs of a cluster, where many people may read it.
"""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.config.paths import DATABASE_SCHEMES, SERVER_SCHEMES
from pipeline.errors import ConfigError
from pipeline.names import BUCKET_SCHEME
from pipeline.uris import HIDDEN, TextKind, holds_credentials

TRACKING_URI = "registry.tracking_uri"

_PROSE = re.compile(r"tasks\.\d+\.template|sources\.\d+\.constants\..+")  # texts that may name a URL

_SERVER_REMEDY = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_REMEDIES = {
    **dict.fromkeys(SERVER_SCHEMES, _SERVER_REMEDY),
    "postgresql": "set PGUSER and PGPASSWORD, or PGPASSFILE",
    # the drivers of MySQL read no variable
    "mysql": "name a file with user and password below [client]: ?read_default_file=/run/secrets/my.cnf",
    # its driver takes a password from the URI alone
    "mssql": f"run an MLflow server on the database, write its http:// address, and {_SERVER_REMEDY}",
    BUCKET_SCHEME.removesuffix("://"): (
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_SHARED_CREDENTIALS_FILE"
    ),
}


def check_credentials(settings: dict[str, Any], origin: str) -> None:
    """Raise ConfigError, which does not show them, if URLs in plain settings hold credentials.

    Args:
        settings: Settings as in a config file.
        origin: The file or command they come from, for the error message.
    """
    problems = [
        f"{setting} holds an account or a secret, not shown here; write the URL without it, and {remedy}"
        for setting, remedy in _find_credentials(settings, "")
    ]
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))


def _find_credentials(value: Any, setting: str) -> Iterator[tuple[str, str]]:
    """Yield (setting, remedy) for each text, keys included, that has a URL with credentials."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = str(key)
            if holds_credentials(name):
                yield f"a key of {setting}" if setting else "a key", _remedy(name, setting)
                name = HIDDEN
            yield from _find_credentials(inner, f"{setting}.{name}" if setting else name)
    elif isinstance(value, list | tuple | set):
        for number, inner in enumerate(value):
            yield from _find_credentials(inner, f"{setting}.{number}")
    elif isinstance(value, bytes):
        yield from _find_credentials(value.decode(errors="replace"), setting)
    elif isinstance(value, str):
        kind: TextKind = "prose" if _PROSE.fullmatch(setting) else "value"
        allows_user = _scheme(value) in DATABASE_SCHEMES and not setting.startswith("backbone.")
        if holds_credentials(value, "uri" if setting == TRACKING_URI else kind, allows_user):
            yield setting, _remedy(value, setting)


def _remedy(text: str, setting: str) -> str:
    if setting.startswith("backbone."):
        return "set HF_TOKEN"
    return _REMEDIES.get(_scheme(text), "keep it in a variable of the program that needs it")


def _scheme(uri: str) -> str:
    """Return the scheme of a URI without its driver."""
    return re.split(r"[:+]", uri.strip(), maxsplit=1)[0].lower()
