"""On-disk table of texts by key, for sources with separate files of queries and products."""

import sqlite3
from pathlib import Path

CACHE_KB = 65_536  # memory for pages; the free memory of the machine caches the file as well


class Lookup:
    """Pairs of texts by key, in a temporary file as large as the texts; OSError if the disk is full."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        # no journal and no sync: the file is deleted with the import
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KB}; "
            "PRAGMA locking_mode=EXCLUSIVE;"
        )
        self._database.execute("CREATE TABLE texts (key TEXT NOT NULL UNIQUE, first TEXT, second TEXT)")
        self._database.execute("BEGIN")

    def __enter__(self) -> "Lookup":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def put(self, key: str, first: str | None, second: str | None = None) -> bool:
        """Store the texts of a key; return False and change nothing if the key exists."""
        try:
            cursor = self._database.execute(
                "INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", (key, first, second)
            )
        except sqlite3.Error as error:
            raise OSError(f"texts of the source cannot be stored beside the data folder ({error})") from error
        return cursor.rowcount == 1

    def get(self, key: str) -> tuple[str | None, str | None] | None:
        """Return the texts of a key; None if it does not exist."""
        query = "SELECT first, second FROM texts WHERE key = ?"
        texts: tuple[str | None, str | None] | None = self._database.execute(query, (key,)).fetchone()
        return texts
