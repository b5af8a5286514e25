"""What an actor has begun, noted beside the run for the actor that comes after it: its start, and its
units.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage.filesystem import remove_tree

MAX_ATTEMPTS = 3  # of a unit whose actor dies; Ray's own default is without end

KEEP_S = 7 * 24 * 3600.0  # notes of a run that failed, for who looks into it

SHOWN_ROWS = 5  # row ids in a message


class Starts:
    """How often in a row processes of one run of the job ended before they had loaded their model."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "starts"

    def number(self) -> int:
        """Starts that came to nothing, those under way included."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:  # none, or another actor's came through
            return 0

    def begin(self) -> None:
        """One more."""
        with self.path.open("ab") as file:
            file.write(b".")

    def done(self) -> None:
        """One came through."""
        self.path.unlink(missing_ok=True)


class Attempts:
    """Of one unit in one run of the job."""

    def __init__(self, folder: Path, partition: str) -> None:
        self.begun_path, self.taken_path = folder / f"{partition}.begun", folder / f"{partition}.rows"

    def number(self) -> int:
        """How often the unit was begun."""
        return self.begun_path.stat().st_size if self.begun_path.is_file() else 0

    def begin(self) -> None:
        """One more."""
        with self.begun_path.open("ab") as file:
            file.write(b".")

    def take(self, rows: np.ndarray, row_ids: list[str]) -> None:
        """These rows, by their numbers in the unit and their ids, are about to be judged."""
        self.taken_path.write_text(json.dumps({"rows": rows.tolist(), "row_ids": row_ids}), encoding="utf-8")

    def _taken(self) -> dict[str, list[Any]]:
        try:
            return dict(json.loads(self.taken_path.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # none yet, or the process ended while it wrote
            return {"rows": [], "row_ids": []}

    def rows_taken(self) -> list[int]:
        """Numbers of the rows that were being judged last."""
        return self._taken()["rows"]

    def suspects(self) -> list[int]:
        """Rows that an attempt before this one did not get past; none at the first."""
        return self.rows_taken() if self.number() > 1 else []

    def in_hand(self) -> str:
        """The rows that were being judged last, for people."""
        row_ids = self._taken()["row_ids"]
        if not row_ids:
            return "before any row was judged"
        more = f" and {len(row_ids) - SHOWN_ROWS} more" if len(row_ids) > SHOWN_ROWS else ""
        return f"while it judged rows {', '.join(row_ids[:SHOWN_ROWS])}{more}"


def sweep_attempts(root: Path) -> None:
    """Remove what runs that failed or were killed more than KEEP_S ago have left of their attempts."""
    for folder in root.glob("*") if root.is_dir() else ():
        if folder.is_dir() and folder.stat().st_mtime < time.time() - KEEP_S:
            remove_tree(folder)
