"""Check that a config holds no passwords.

A config is copied: to MLflow, to logs, and to the jobs of a cluster, where many people may read it.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.config.paths import DATABASE_SCHEMES, SERVER_SCHEMES
from pipeline.errors import ConfigError
from pipeline.names import BUCKET_SCHEME, holds_credentials

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
    """Yield (setting, remedy) for each text that is a URL with credentials."""
    if isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _find_credentials(inner, f"{setting}.{name}" if setting else str(name))
    elif isinstance(value, str) and "://" in value and holds_credentials(value):
        scheme = value.partition("://")[0].partition("+")[0].lower()
        if setting.startswith("backbone."):
            yield setting, "set HF_TOKEN"
        elif not (scheme in DATABASE_SCHEMES and _has_user_alone(value)):
            yield setting, _REMEDIES.get(scheme, "keep it in a variable of the program that needs it")


def _has_user_alone(uri: str) -> bool:
    """Return whether the URI of a database holds the name of its user and no secret."""
    scheme, _, rest = uri.partition("://")
    user, _, place = rest.partition("@")
    return not any(mark in user for mark in ":/?") and not holds_credentials(f"{scheme}://{place}")
