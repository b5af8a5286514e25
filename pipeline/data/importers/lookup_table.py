"""Texts by key on disk, for sources that keep queries and products in files of their own: any number of them,
bounded memory.
"""

import sqlite3
from pathlib import Path
from types import TracebackType

CACHE_KB = 65_536  # of memory for pages; the rest of the memory that is free serves as the disk's cache


class Lookup:
    """Tuples of texts by key, in a temporary file as large as the texts. OSError: the disk is full."""

    def __init__(self, path: Path) -> None:
        # No journal and no sync: the file does not outlive the import.
        self._base = sqlite3.connect(path, isolation_level=None)
        self._base.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KB}; PRAGMA "
            "locking_mode=EXCLUSIVE;"
        )
        self._base.execute("CREATE TABLE texts (key TEXT NOT NULL UNIQUE, first TEXT, second TEXT)")
        self._base.execute("BEGIN")

    def __enter__(self) -> "Lookup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()

    def put(self, key: str, first: str | None, second: str | None = None) -> bool:
        """Keep the texts of a key; False, and nothing changes, if the key is there already."""
        try:
            return (
                self._base.execute(
                    "INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", (key, first, second)
                ).rowcount
                == 1
            )
        except sqlite3.Error as error:
            raise OSError(
                f"texts of the source could not be kept beside the data folder ({error})"
            ) from error

    def get(self, key: str) -> tuple[str | None, str | None] | None:
        """The texts of a key; None if it is not there."""
        found: tuple[str | None, str | None] | None = self._base.execute(
            "SELECT first, second FROM texts WHERE key = ?", (key,)
        ).fetchone()
        return found
