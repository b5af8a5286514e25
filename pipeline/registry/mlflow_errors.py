"""Errors of MLflow, its database and its servers as errors with a remedy.

A fault that a retry cannot mend is never a RetryableError: schedulers try those again.
"""

import contextlib
import re
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.registry.mlflow_internals import is_account_refused
from pipeline.uris import hide_credentials

MAX_ERROR_CHARS = 300

# modules that MLflow and SQLAlchemy import for some addresses, and what to install for them
DRIVERS = {
    "psycopg": "psycopg[binary], or write postgresql+psycopg2:// for psycopg2",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient, or write mysql+pymysql:// for pymysql",
    "mysql": "mysql-connector-python",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
    "boto3": "boto3",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob",
    "databricks": "databricks-sdk",
}

# names of MLflow for errors that the same request gives again
PERMANENT_CODES = (
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "RESOURCE_DOES_NOT_EXIST",
)


@dataclass(frozen=True)
class _Fault:
    """A kind of failure, recognized by the text of the error."""

    pattern: re.Pattern[str]
    kind: type[RelevanceError]
    state: str
    cure: str


def _fault(pattern: str, kind: type[RelevanceError], state: str, cure: str) -> _Fault:
    return _Fault(re.compile(pattern, re.IGNORECASE), kind, state, cure)


# the first that matches decides
FAULTS = (
    _fault(
        r"password authentication failed|access denied for user|login failed for user|no pg_hba.conf entry",
        ConfigError,
        "refuses the account",
        "correct the account of the database",
    ),
    _fault(
        r"databricks credential configuration failed",
        ConfigError,
        "has no credentials",
        "run `databricks auth login`, or set DATABRICKS_HOST and DATABRICKS_TOKEN",
    ),
    _fault(  # words of SQLAlchemy and of libpq
        r"can't load plugin|could not parse sqlalchemy url|"
        r"invalid (?:dsn|port number|connection option|integer value|\w+ value)",
        ConfigError,
        "has a URI that is not valid",
        "correct registry.tracking_uri",
    ),
    _fault(
        r"database schema|can't locate revision",
        ConfigError,
        "has the database schema of another release",
        "back it up and run `mlflow db upgrade`, or install the release of MLflow that it belongs to",
    ),
    _fault(
        r"file is not a database|database disk image is malformed",
        DamagedInputError,
        "is a damaged database",
        "restore the file from a backup, or move it away to begin a new one",
    ),
    _fault(
        r"table \S+ already exists",
        DamagedInputError,
        "is a database whose creation was interrupted",
        "delete its file if nothing was registered there, or restore it from a backup",
    ),
    _fault(
        r"unable to open database file|readonly database|permission denied",
        ConfigError,
        "cannot be opened for writing",
        "check that its folder exists and that this user may write there",
    ),
    _fault(
        r'database "[^"]*" does not exist|unknown database|cannot open database',
        ConfigError,
        "does not exist",
        "create the database, or correct registry.tracking_uri",
    ),
    _fault(
        r"database or disk is full|no space left",
        RetryableError,
        "has no space left",
        "free some, then run again",
    ),
    _fault(
        r"the run \S+ must be in the 'active' state",
        ConfigError,
        "has deleted the run",
        "restore it with `mlflow runs restore --run-id`, then run again",
    ),
    _fault(
        r"'active' state|deleted state",
        ConfigError,
        "has deleted the experiment of registry.model",
        "restore it with `mlflow experiments restore`, or choose another registry.model",
    ),
    _fault(
        r"certificate_verify_failed|certificate verify failed",
        ConfigError,
        "has a certificate that is not trusted",
        "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of its authority",
    ),
    _fault(
        r"error code 404 ",
        ConfigError,
        "is not a server of MLflow",
        "correct registry.tracking_uri",
    ),
)


@contextlib.contextmanager
def translate_mlflow_errors(tracking_uri: str) -> Iterator[None]:
    """Turn errors of MLflow into errors with a remedy.

    Raises:
        ConfigError: The store refuses the account, lacks a package, a database or an experiment, or has
            another schema.
        DamagedInputError: The database is damaged.
        RetryableError: The store does not answer; any other error of MLflow.
    """
    try:
        yield
    except Exception as error:
        if "mlflow" not in sys.modules:
            raise
        failure = _translate(error, f"MLflow at {hide_credentials(tracking_uri)}")
        if failure is None:
            raise
        raise failure from error


@contextlib.contextmanager
def translate_connect_errors(tracking_uri: str) -> Iterator[None]:
    """Turn errors of connecting into errors with a remedy.

    Every package that is missing here belongs to the URI, and so does an option that a driver cannot use.

    Raises:
        ConfigError: A package is missing, or a library cannot use the URI.
        RelevanceError: The errors of `translate_mlflow_errors`.
    """
    place = f"MLflow at {hide_credentials(tracking_uri)}"
    try:
        with translate_mlflow_errors(tracking_uri):
            yield
    except (ImportError, TypeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise ConfigError(f"{place} needs a package; install {error.name}") from error
        reason = _shorten(hide_credentials(str(error)))
        if isinstance(error, ImportError):
            problem = f"needs a package that cannot be loaded ({reason}); install it again"
        else:
            problem = f"has a URI that is not valid ({reason}); correct registry.tracking_uri"
        raise ConfigError(f"{place} {problem}") from error


def _translate(error: Exception, place: str) -> RelevanceError | None:
    """Return the error for the user; None for an error that is not of MLflow."""
    if isinstance(error, ModuleNotFoundError):
        package = DRIVERS.get(str(error.name).partition(".")[0])
        return ConfigError(f"{place} needs a package; install {package}") if package else None
    if not isinstance(error, _error_classes()):
        return None
    reason = _shorten(hide_credentials(str(error)))  # hidden first, because a cut could halve an account
    if is_account_refused(error):
        return ConfigError(
            f"{place} refuses the account ({reason}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to an account with access"
        )
    for fault in FAULTS:
        if fault.pattern.search(str(error)):
            return fault.kind(f"{place} {fault.state} ({reason}); {fault.cure}")
    if getattr(error, "error_code", None) in PERMANENT_CODES or isinstance(error, _permanent_classes()):
        return ConfigError(
            f"{place} refuses the request ({reason}); correct the config, or set registry.tracking_uri to "
            "the store that has it"
        )
    return RetryableError(
        f"{place} does not answer as expected ({reason}); check it or set registry.tracking_uri, then "
        "run again"
    )


def _error_classes() -> tuple[type[Exception], ...]:
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from requests import RequestException  # of artifacts that a server passes on
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, CommandError, sqlite3.Error


def _permanent_classes() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import ArgumentError

    return ArgumentError, ValueError  # of requests: a URL that is not valid, an answer that is not JSON


def _shorten(text: str) -> str:
    """Return an error message on one line, cut in the middle: the cause is at its end."""
    # the statement and a link, which SQLAlchemy adds
    text = re.sub(r"\[(?:SQL|parameters): .*|\(Background on this error at: \S+\)", "", text, flags=re.DOTALL)
    line = " ".join(text.split())
    if len(line) <= MAX_ERROR_CHARS:
        return line
    head, tail = MAX_ERROR_CHARS // 3, 2 * MAX_ERROR_CHARS // 3
    return f"{line[:head]}…{line[-tail:]}"
