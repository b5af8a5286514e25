"""What an actor has begun of a unit, noted beside the run for the actor that comes after it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

SHOWN_ROWS = 5  # row ids in a message


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
