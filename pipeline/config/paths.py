"""Types of settings that name a file, a folder, a bucket or the store of MLflow.

`~/` is the home folder. Variables are not expanded: a path with `$` is refused, because its folder would be
called `$HOME`. Control characters are refused too.
"""

import importlib.metadata
import unicodedata
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from pipeline.names import is_bucket

BUCKET_SETTINGS = "data.judged, data.to_score and scoring.scores"  # the settings that take a bucket

SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
DATABRICKS = "databricks"  # also without ://

SQLITE_PREFIX = "sqlite:///"
SQLITE_SPECIAL = "%?"  # SQLAlchemy decodes the one and cuts at the other, MLflow does neither


def check_path_text(text: str) -> str:
    """Return the text of a path unchanged; raise ValueError if it cannot be meant as it stands."""
    if not text.strip():
        raise ValueError("path is empty; write a folder or file, or leave the setting out")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ValueError("path has a line break or another control character; write it without")
    if "$" in text:
        raise ValueError("path has a $, and variables are not expanded; write the path in full")
    if text.startswith("~") and not text.startswith("~/") and text != "~":
        raise ValueError("path starts with ~, which stands for your home only as ~/; write the path in full")
    return text


def parse_path(value: Any) -> Any:
    """Return a path with its `~` expanded; leave paths and other types to pydantic.

    A path object comes from a command line or from a default, and is meant as it stands.
    """
    if not isinstance(value, str):
        return value
    if is_bucket(value):
        raise ValueError(
            f"bucket is not possible here; write a folder or file (buckets are for {BUCKET_SETTINGS})"
        )
    if "://" in value:
        raise ValueError("URL is not possible here; write the path of a folder or file, without a scheme")
    return Path(check_path_text(value)).expanduser()


def parse_location(value: Any) -> Any:
    """Return a bucket URL as written and a folder as an absolute path; leave other types to pydantic."""
    if isinstance(value, str) and is_bucket(value):
        return check_path_text(value)
    if isinstance(value, str) and "://" in value:
        raise ValueError(f"location is not supported: {value}; use a folder or s3://bucket/prefix")
    path = parse_path(value)
    return path.absolute() if isinstance(path, Path) else path


def parse_tracking_uri(uri: str) -> str:
    """Return the URI of a store that MLflow supports, the path of an sqlite file as an absolute path.

    Raises:
        ValueError: MLflow has no store for the URI.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator and uri != DATABRICKS:
        raise ValueError(
            f"it is not a URI of MLflow; write http://HOST:PORT for a server, or {SQLITE_PREFIX}FILE for a "
            "database in a file"
        )
    dialect = scheme.partition("+")[0]
    if scheme in SERVER_SCHEMES:
        _check_server(uri)
    elif dialect == "sqlite":
        return _parse_sqlite(uri)
    elif dialect not in (*DATABASE_SCHEMES, DATABRICKS, *_installed_stores()):
        known = ", ".join(f"{name}://" for name in (*SERVER_SCHEMES, *DATABASE_SCHEMES))
        raise ValueError(f"MLflow has no store of scheme {scheme}; use {known} or databricks")
    elif any(character.isspace() for character in rest):
        raise ValueError("URI has a blank; write it as %20")
    return uri


def sqlite_uri(path: Path) -> str:
    """Return the URI of a database in a file.

    Raises:
        ValueError: A folder of the path has a character that no URI of MLflow can hold.
    """
    if any(character in str(path) for character in SQLITE_SPECIAL):
        raise ValueError(
            f"MLflow cannot keep its database below a work_dir with % or ?: {path.parent}; rename it, "
            "or set registry.tracking_uri"
        )
    return f"{SQLITE_PREFIX}{path}"


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        has_host = bool(parts.hostname) and parts.port != 0  # reading a wrong port raises ValueError
    except ValueError as error:
        raise ValueError(f"address is not valid ({error}); write it as http://host:5000") from error
    if not has_host or any(character.isspace() for character in uri):
        raise ValueError("address is not valid; write it as http://host:5000")


def _parse_sqlite(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    path, mark, query = rest.removeprefix("/").partition("?")
    if not rest.startswith("/") or not path:
        raise ValueError(f"sqlite URI names no file; write {SQLITE_PREFIX}FILE")
    if "%" in path:
        raise ValueError("sqlite file with % is not possible in a URI of MLflow; choose another path")
    return f"{scheme}:///{Path(check_path_text(path)).expanduser().absolute()}{mark}{query}"


def _installed_stores() -> set[str]:
    """Return the schemes that plugins of MLflow add."""
    return {plugin.name for plugin in importlib.metadata.entry_points(group="mlflow.tracking_store")}


# relative paths start at the working directory
InputPath = Annotated[Path, BeforeValidator(parse_path)]
# made absolute when the config is read, because workers start in another folder
AbsolutePath = Annotated[InputPath, AfterValidator(Path.absolute)]
Location = Annotated[Path | str, BeforeValidator(parse_location)]
