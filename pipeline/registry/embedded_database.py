"""Creation of the sqlite database of MLflow's embedded store."""

import contextlib
import os
import sqlite3
from pathlib import Path

from models.files import remove_abandoned, remove_tree, sync_dir, sync_tree, temporary_path


def create_embedded_database(tracking_uri: str) -> None:
    """Create the database of a sqlite URI if its file is missing; do nothing for other URIs.

    MLflow creates its tables in many transactions. A process that is killed between two of them leaves a
    database that MLflow never opens again. So the tables are created in a temporary folder, and a copy that
    nobody has open takes the final name at once. Of several concurrent callers the first decides the file.

    Raises:
        OSError: The file cannot be written.
        MlflowException, sqlite3.Error: The tables cannot be created.
    """
    path = _database_path(tracking_uri)
    if path is None or not path.parent.is_dir():  # MLflow refuses a missing folder
        return
    remove_abandoned(path.parent)  # also of a process that was killed when the file had its name
    if path.exists():
        return
    from mlflow import MlflowClient

    staged = temporary_path(path)
    try:
        staged.mkdir()
        made, finished = staged / "made.db", staged / "finished.db"
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(made)) as connection:
            connection.execute("VACUUM INTO ?", [str(finished)])
        sync_tree(staged)
        with contextlib.suppress(FileExistsError):
            os.link(finished, path)
        sync_dir(path.parent)
    finally:
        remove_tree(staged)


def _database_path(tracking_uri: str) -> Path | None:
    """Return the file of a sqlite URI; None for a URI of another kind, or one with options."""
    if not tracking_uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    url = make_url(tracking_uri)
    if not url.database or url.database == ":memory:" or url.query:
        return None
    return Path(url.database)
