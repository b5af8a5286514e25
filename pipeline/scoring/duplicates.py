"""Rows of a run whose row_id another row has: found before any unit is scored, so that one row keeps the id.

A published row keeps its id, unless it was published as a duplicate. Of the other rows the first keeps it, by
task, path and row. This follows from the inputs and from what is published, not from the order in which units
finish: a run that was killed and started again decides as one that was not. With --all-tasks an id counts for
all tasks together, as each row is labeled for all of them; else for each task alone.

Memory is bounded: 16-byte digests of all row ids lie in a file and are compared part by part.

Shape legend: N rows of all units, C rows of a chunk, P rows of a part, R rows with a repeated id.
"""

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.parquet_batches import BatchLimits
from pipeline.data.reader import check_schema, read_rows
from pipeline.errors import DamagedInputError, DataRefusedError, RetryableError
from pipeline.scoring.inputs import CONCURRENT_FOOTERS, open_input
from pipeline.scoring.label_store import Root, read_error_rows, read_manifest
from pipeline.scoring.row_errors import REPEATED_ID
from pipeline.scoring.work_units import WorkUnit
from pipeline.storage.object_store import open_store

DIGESTS_AT_ONCE = 2_000_000  # compared at a time: about 200 MB

BATCH_ROWS = 8_192


def find_duplicates(
    to_do: Sequence[WorkUnit], published: Sequence[WorkUnit], scores: Root, folder: Path
) -> list[WorkUnit]:
    """Return the units to score, each with its number of duplicates.

    Args:
        to_do: Units to score.
        published: Published units of the same inputs.
        scores: The location of all scores.
        folder: Receives a file of duplicates for each unit that has some, see `read_duplicates`.

    Raises:
        RetryableError: An input changed since the units were planned.
    """
    with _RowIds(to_do, published, scores, folder) as row_ids:
        row_ids.read()
        row_ids.compare()
        return [row_ids.write_duplicates(unit) for unit in to_do]


def read_duplicates(folder: Path, unit: WorkUnit) -> dict[int, str]:
    """Return the first place of the id of each duplicate of a unit, by the row's number in its file.

    Raises:
        RetryableError: The file of duplicates is missing or is not the unit's.
    """
    if not unit.duplicates:
        return {}
    path = _duplicates_path(folder, unit.unit_id)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RetryableError(
            f"list of repeated row_ids is not readable: {path} ({error}); run the same command again"
        ) from error
    if table.num_rows != unit.duplicates:
        raise RetryableError(
            f"list of repeated row_ids is of another plan: {path}; run the same command again"
        )
    places = zip(table["first_row"].to_pylist(), table["first_path"].to_pylist(), strict=True)
    return {
        row: f"row {first_row} of {first_path}"
        for row, (first_row, first_path) in zip(table["row"].to_pylist(), places, strict=True)
    }


class _RowIds:
    """Digests of the row ids of all units, in two files of a folder.

    Rows have positions in the order of the plan: by task, path and row.
    """

    def __init__(
        self, to_do: Sequence[WorkUnit], published: Sequence[WorkUnit], scores: Root, folder: Path
    ) -> None:
        self.units = sorted(
            [*to_do, *published], key=lambda unit: (unit.task, unit.path, unit.part or (0, 0))
        )
        published_ids = {unit.unit_id for unit in published}
        self.is_published = np.array([unit.unit_id in published_ids for unit in self.units], bool)
        self.starts = np.cumsum([0, *(unit.rows for unit in self.units)])  # position of each unit's first row
        self.numbers = {unit.unit_id: number for number, unit in enumerate(self.units)}
        self.scores, self.folder = open_store(scores), folder
        self.published_duplicates: dict[int, np.ndarray] = {}  # positions by number of the unit
        self._paths = folder / "row_ids", folder / "first_places"
        self.digest_N2 = _create_array(self._paths[0], int(self.starts[-1]) * 2).reshape(-1, 2)
        # position of the row that keeps the id, plus 1; 0: the row itself
        self.first_N = _create_array(self._paths[1], int(self.starts[-1]))

    def __enter__(self) -> "_RowIds":
        return self

    def __exit__(self, *_: object) -> None:
        del self.digest_N2, self.first_N
        for path in self._paths:
            path.unlink(missing_ok=True)

    def read(self) -> None:
        """Fill in the digests; 0 for rows without an id, and for the later rows with an id inside a unit."""
        files = [
            list(group) for _, group in itertools.groupby(self.units, lambda unit: (unit.task, unit.path))
        ]
        with ThreadPoolExecutor(CONCURRENT_FOOTERS) as pool:
            list(pool.map(self._read_file, files))

    def compare(self) -> None:
        """Find the row that keeps each repeated id."""
        num_parts = -(-len(self.digest_N2) // DIGESTS_AT_ONCE)
        for part in range(num_parts):
            firsts = range(0, len(self.digest_N2), DIGESTS_AT_ONCE)
            position_P = np.concatenate([self._positions_of_part(part, num_parts, first) for first in firsts])
            order_P, is_later_P = _sort_by_digest(self.digest_N2[position_P])
            is_repeated_P = is_later_P.copy()
            is_repeated_P[:-1] |= is_later_P[1:]
            id_R = np.cumsum(~is_later_P)[is_repeated_P]
            self._choose_first(id_R, position_P[order_P][is_repeated_P])

    def write_duplicates(self, unit: WorkUnit) -> WorkUnit:
        """Write the duplicates of a unit to a file, and return the unit with their number."""
        number = self.numbers[unit.unit_id]
        first_place = self.first_N[self.starts[number] : self.starts[number + 1]].astype(np.int64)
        rows = np.flatnonzero(first_place)
        if not len(rows):
            return unit
        first_position = first_place[rows] - 1
        first_unit = self._unit_of(first_position)
        first_rows = np.array([_first_row(self.units[number]) for number in first_unit])
        table = pa.table(
            {
                "row": rows + _first_row(unit),
                "first_row": first_rows + first_position - self.starts[first_unit],
                "first_path": [self.units[number].path for number in first_unit],
            }
        )
        pq.write_table(table, _duplicates_path(self.folder, unit.unit_id))
        return replace(unit, duplicates=len(rows))

    def _read_file(self, units: Sequence[WorkUnit]) -> None:
        """Fill in the digests of the units of a file; none if it is not readable, as its units will fail."""
        first, last = self.numbers[units[0].unit_id], self.numbers[units[-1].unit_id]
        digest_C2 = self.digest_N2[self.starts[first] : self.starts[last + 1]]
        salt = b"" if units[0].all_tasks else units[0].task.encode()
        try:
            _read_digests(units[0], salt, digest_C2)
        except (DamagedInputError, DataRefusedError):
            digest_C2[:] = 0
        for start, end in itertools.pairwise(self.starts[first : last + 2] - self.starts[first]):
            order, is_later = _sort_by_digest(digest_C2[start:end])
            digest_C2[start:end][order[is_later]] = 0

    def _positions_of_part(self, part: int, num_parts: int, first: int) -> np.ndarray:
        # digests are uniform, so each residue has about the same number
        digest_C = self.digest_N2[first : first + DIGESTS_AT_ONCE, 0]
        return np.flatnonzero((digest_C % num_parts == part) & (digest_C != 0)) + first

    def _choose_first(self, id_R: np.ndarray, position_R: np.ndarray) -> None:
        """Note for each row to score the row that keeps its id.

        Args:
            id_R: (R,) number of the repeated id of each row.
            position_R: (R,) position of the row.
        """
        unit_R = self._unit_of(position_R)
        is_published_R = self.is_published[unit_R]
        known = [self._published_duplicates(number) for number in np.unique(unit_R[is_published_R])]
        is_candidate_R = ~np.isin(position_R, np.concatenate([np.zeros(0, int), *known]))
        id_R, position_R, is_published_R = (
            values[is_candidate_R] for values in (id_R, position_R, is_published_R)
        )
        order_R = np.lexsort((position_R, ~is_published_R, id_R))
        id_R, position_R, is_published_R = (values[order_R] for values in (id_R, position_R, is_published_R))
        _, first, inverse_R = np.unique(id_R, return_index=True, return_inverse=True)
        first_R = position_R[first][inverse_R]
        is_duplicate_R = ~is_published_R & (position_R != first_R)
        self.first_N[position_R[is_duplicate_R]] = first_R[is_duplicate_R] + 1

    def _published_duplicates(self, number: int) -> np.ndarray:
        """Return the positions of the rows that a published unit holds as duplicates."""
        if number not in self.published_duplicates:
            unit = self.units[number]
            errors = read_error_rows(self.scores, [read_manifest(self.scores, unit.unit_id)])
            repeated = errors.filter(pc.starts_with(errors["reason"], REPEATED_ID))["row"].to_numpy()
            self.published_duplicates[number] = repeated - _first_row(unit) + self.starts[number]
        return self.published_duplicates[number]

    def _unit_of(self, position_R: np.ndarray) -> np.ndarray:
        # of units without rows, which start at the same position, the last one before it
        return np.searchsorted(self.starts, position_R, side="right") - 1


def row_id_digests(row_ids: Sequence[str | None], salt: bytes) -> np.ndarray:
    """Return (N, 2) 16-byte digests of row ids; 0 for null.

    With 16 bytes no two different ids of any run have the same digest, so that ids need not be compared.
    """
    empty, prefix = bytes(16), hashlib.blake2b(salt + b"\0", digest_size=16)

    def digest(row_id: str | None) -> bytes:
        if row_id is None:
            return empty
        hashed = prefix.copy()
        hashed.update(row_id.encode())
        return hashed.digest()

    return np.frombuffer(b"".join(map(digest, row_ids)), "<u8").reshape(-1, 2)


def _read_digests(unit: WorkUnit, salt: bytes, digest_C2: np.ndarray) -> None:
    """Fill in the digests of a file's row ids.

    Raises:
        DamagedInputError: The file is damaged.
        DataRefusedError: The file has another schema, or see `read_rows`.
        RetryableError: The file changed since the units were planned.
    """
    with open_input(unit.path, unit.digest) as file:
        check_schema(file, unit.path)
        row = 0
        for rows in read_rows(file, unit.path, ("row_id",), limits=BatchLimits(BATCH_ROWS)):
            digests = row_id_digests(rows["row_id"].to_pylist(), salt)
            digest_C2[row : row + len(digests)] = digests[: max(0, len(digest_C2) - row)]
            row += len(digests)


def _sort_by_digest(digest_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in the order of their digests (P,), and a mask of those whose digest is the one before.

    Equal digests stay in the order of their rows.
    """
    order_P = np.lexsort((digest_P2[:, 1], digest_P2[:, 0]))
    sorted_P2 = digest_P2[order_P]
    is_later_P = np.zeros(len(order_P), bool)
    is_later_P[1:] = (sorted_P2[1:] == sorted_P2[:-1]).all(1)
    return order_P, is_later_P


def _create_array(path: Path, size: int) -> np.ndarray:
    """Return zeros (size,) of 8 bytes in a file, with its space reserved: a full disk is an error here."""
    if not size:
        return np.zeros(0, "<u8")
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * size)
    return np.memmap(path, "<u8", "r+", shape=(size,))


def _first_row(unit: WorkUnit) -> int:
    return unit.part[0] if unit.part else 0


def _duplicates_path(folder: Path, unit_id: str) -> Path:
    return folder / f"{unit_id}.duplicates.parquet"
