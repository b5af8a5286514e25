"""Files that record begun attempts of a run, for the actor that continues after a crash."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.files import parse_json, remove_tree
from pipeline.data.data_files import list_some
from pipeline.storage.filesystem import safe_join

# Attempts at a unit whose actor dies or hangs, model loads in a row for each actor (model_actor.py), and Ray
# Data pipelines of a command (actor_pool.py). Ray's own default is unlimited.
MAX_ATTEMPTS = 3

KEEP_S = 7 * 24 * 3600.0  # files of failed runs stay for diagnosis

SHOWN_ROWS = 5  # row ids in a message


class LoadAttempts:
    """Counter of processes of one run that began to load the model and have not finished."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "starts"

    def count(self) -> int:
        """Return the number of loads that crashed or are under way since the last success."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self) -> None:
        """Count one more load."""
        with self.path.open("ab") as file:
            file.write(b".")

    def reset(self) -> None:
        """Start again from 0, after a load that succeeded."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class InFlightRows:
    """Rows that an attempt is scoring."""

    rows: tuple[int, ...] = ()  # numbers among the valid rows of the unit
    row_ids: tuple[str, ...] = ()
    rows_before: int = 0  # scored by the attempt before these

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "InFlightRows":
        """Parse the recorded form."""
        return cls(tuple(fields["rows"]), tuple(fields["row_ids"]), fields["rows_before"])

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {"rows": list(self.rows), "row_ids": list(self.row_ids), "rows_before": self.rows_before}


class UnitAttempts:
    """Attempts at one work unit in one run."""

    def __init__(self, folder: Path, unit_id: str) -> None:
        self.begun_path, self.in_flight_path = folder / f"{unit_id}.begun", folder / f"{unit_id}.rows"
        self._rows_recorded = 0

    def count(self) -> int:
        """Return the number of attempts that began."""
        return self.begun_path.stat().st_size if self.begun_path.is_file() else 0

    def begin(self) -> None:
        """Count one more attempt."""
        with self.begun_path.open("ab") as file:
            file.write(b".")

    def record_in_flight(self, rows: np.ndarray, row_ids: list[str]) -> None:
        """Record rows that are about to be scored, by number among the unit's valid rows and by id."""
        in_flight = InFlightRows(tuple(rows.tolist()), tuple(row_ids), self._rows_recorded)
        self._rows_recorded += len(rows)
        self.in_flight_path.write_text(json.dumps(in_flight.to_json()), encoding="utf-8")

    def finish(self) -> None:
        """Forget the rows in flight: the unit is published."""
        self.in_flight_path.unlink(missing_ok=True)

    def in_flight_rows(self) -> list[int]:
        """Return the numbers of the rows that were recorded last."""
        return list(self._read_in_flight().rows)

    def retry_candidates(self) -> list[int]:
        """Return the rows that stopped an earlier attempt; none at the first attempt."""
        return self.in_flight_rows() if self.count() > 1 else []

    def describe_in_flight(self) -> str:
        """Return the rows that were recorded last as text for an error message."""
        row_ids = self._read_in_flight().row_ids
        if not row_ids:
            return "before any row was scored"
        return f"while scoring rows {list_some(row_ids, SHOWN_ROWS)}"

    def _read_in_flight(self) -> InFlightRows:
        return _read_in_flight(self.in_flight_path)


def _read_in_flight(path: Path) -> InFlightRows:
    try:
        return InFlightRows.from_json(parse_json(path.read_bytes()))
    except (OSError, ValueError):  # no row yet, or the process died while it wrote
        return InFlightRows()


def rows_scored(folder: Path) -> int:
    """Return the number of rows that the attempts under way have scored so far."""
    return sum(_read_in_flight(path).rows_before for path in folder.glob("*.rows"))


def any_attempt_began(folder: Path) -> bool:
    """Return True if an actor has begun a unit."""
    return next(folder.glob("*.begun"), None) is not None


def create_attempts_dir(run_dir: Path, below: str, name: str) -> Path:
    """Create the folder <run_dir>/<below>/<name> for the attempts of one run, and remove old ones beside it.

    Raises:
        ConfigError: The folder of all attempts is a link.
    """
    root = safe_join(run_dir, below)
    sweep_attempts(root)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def attempt_evidence(folder: Path) -> list[Path]:
    """Return the files that explain failed units: stacks of actors that hung, and rows in flight."""
    stacks = [path for path in folder.glob("stuck-*.txt") if path.stat().st_size]
    return sorted([*stacks, *folder.glob("*.rows")])


def sweep_attempts(root: Path) -> None:
    """Remove folders that failed or killed runs left more than KEEP_S ago."""
    for folder in root.glob("*") if root.is_dir() else ():
        if folder.is_dir() and folder.stat().st_mtime < time.time() - KEEP_S:
            remove_tree(folder)
