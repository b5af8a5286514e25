"""Repeated row ids of a run: one of the rows keeps the id and is labeled, the others are errors that name it.

A labeled row keeps its id. Of the other rows the first keeps it, by task, path and row. With --all-tasks an
id counts for all tasks together, as each row is labeled for all of them; else for each task alone.

Units are scored in rounds: a unit waits until the units that keep ids of its rows are published, and a unit
that failed for good keeps no id. So no id loses its label with a file that fails or goes away, and a run that
was killed and started again decides as one that was not.

Memory is bounded: 16-byte digests of all row ids lie in files and are compared part by part
(pipeline/scoring/key_digests.py). Digests of the ids of a
unit are cached beside the labels: a run reads the ids of new units.

Shape legend: N rows of all units, C rows of a chunk, R rows with a repeated id.
"""

import enum
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.parquet_batches import BatchLimits
from pipeline.data.reader import check_schema, read_rows
from pipeline.errors import DamagedInputError, DataRefusedError, RetryableError
from pipeline.publishing.unit_store import Root, is_published
from pipeline.scoring.inputs import CONCURRENT_FOOTERS, open_input
from pipeline.scoring.key_digests import DigestParts, create_file_array, mark_later, row_id_digests
from pipeline.scoring.label_store import read_error_rows, read_manifest
from pipeline.scoring.row_id_cache import RowIdCache
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import Plan, WorkUnit
from pipeline.storage.object_store import open_store

BATCH_ROWS = 8_192

CHUNK_ROWS = 65_536


class _State(enum.IntEnum):
    """State of a work unit in a run."""

    TO_DO = 0
    PUBLISHED = 1
    FAILED = 2  # for good: its rows keep no ids
    RETRY = 3  # failed, but the same command may publish it


class ScoringRounds:
    """Work units of a run in rounds: a row is an error for its id only after another row has the label.

    Rows have positions in the order of the plan: by task, path and row.
    """

    def __init__(self, plan: Plan, scores: Root, folder: Path) -> None:
        """Collect the row ids of all units.

        Args:
            plan: Units to score, and published units of the same inputs.
            scores: The location of all scores.
            folder: Receives a file of duplicates for each unit that has some, see `read_duplicates`.

        Raises:
            RetryableError: An input changed since the units were planned.
        """
        self._units = sorted(
            [*plan.to_do, *plan.published], key=lambda unit: (unit.task, unit.path, unit.part or (0, 0))
        )
        self._numbers = {unit.unit_id: number for number, unit in enumerate(self._units)}
        self._state = np.full(len(self._units), _State.TO_DO)
        self._state[[self._numbers[unit.unit_id] for unit in plan.published]] = _State.PUBLISHED
        # position of each unit's first row
        self._starts = np.cumsum([0, *(unit.rows for unit in self._units)])
        self._scores, self._folder, self._inputs = open_store(scores), folder, plan.inputs
        self._unlabeled: dict[int, np.ndarray] = {}  # positions of rows, by number of the published unit
        self._digests = DigestParts(int(self._starts[-1]), folder)
        # position of the row that keeps the id, plus 1; 0: the row itself
        self._first_N = create_file_array((int(self._starts[-1]),), "<u8", folder)
        self._read()

    def next_units(self, results: Sequence[UnitResult] = ()) -> list[WorkUnit]:
        """Return the units of the next round, each with its number of duplicates; none at the end.

        Args:
            results: Of the units returned so far.
        """
        for result in results:
            self._record(result)
        to_do = self._units_to_do()
        if not to_do:
            return []
        self._first_N[:] = 0
        self._compare()
        units = [self._write_duplicates(unit) for unit in to_do if not self._waits(unit)]
        if len(units) == len(to_do):  # the last round: free the space on the disk
            self._digests.close()
            self._first_N = np.zeros(0, "<u8")
        return units

    def describe_waiting(self) -> list[UnitResult]:
        """Return a failure for each unit that was in no round, as units with its row_ids may be retried."""
        return [
            UnitResult(
                unit.unit_id,
                unit.path,
                error=f"{unit.path}: rows have row_ids of rows that could not be scored now; "
                "run the same command again",
                retry=True,
            )
            for unit in self._units_to_do()
        ]

    def _record(self, result: UnitResult) -> None:
        number = self._numbers[result.unit_id]
        if self._state[number] == _State.TO_DO:
            # a unit may fail after it was published, as by the loss of an answer
            if not result.error or is_published(self._scores, result.unit_id):
                self._state[number] = _State.PUBLISHED
            else:
                self._state[number] = _State.RETRY if result.retry else _State.FAILED

    def _units_to_do(self) -> list[WorkUnit]:
        return [self._units[number] for number in np.flatnonzero(self._state == _State.TO_DO)]

    def _positions(self, units: Sequence[WorkUnit]) -> slice:
        """Return the positions of units that follow each other."""
        first, last = self._numbers[units[0].unit_id], self._numbers[units[-1].unit_id]
        return slice(int(self._starts[first]), int(self._starts[last + 1]))

    def _read(self) -> None:
        """Collect the digests of all row ids, but of the later rows with an id inside a unit."""
        digest_N2 = create_file_array((int(self._starts[-1]), 2), "<u8", self._folder)
        cache, known = RowIdCache(self._scores, self._inputs.name, self._units), set()
        for unit, digest_C2 in cache.read():
            digest_N2[self._positions([unit])] = digest_C2
            known.add(unit.unit_id)
        files = [
            list(group) for _, group in itertools.groupby(self._units, lambda unit: (unit.task, unit.path))
        ]
        new = [units for units in files if any(unit.unit_id not in known for unit in units)]
        with ThreadPoolExecutor(CONCURRENT_FOOTERS) as pool:
            for units in pool.map(lambda units: self._read_file(units, digest_N2), new):
                for unit in units:
                    cache.add(unit, digest_N2[self._positions([unit])])
        cache.save()
        for first in range(0, len(digest_N2), CHUNK_ROWS):
            self._digests.add(first, digest_N2[first : first + CHUNK_ROWS])

    def _read_file(self, units: Sequence[WorkUnit], digest_N2: np.ndarray) -> list[WorkUnit]:
        """Fill in the digests of the units of a file; mark units whose ids cannot be read.

        Returns:
            The other units.
        """
        try:
            if self._read_rows(units, digest_N2):
                return list(units)
            # of a damaged file, units before and after the damage are published
            readable = [unit for unit in units if len(units) > 1 and self._read_rows([unit], digest_N2)]
            for unit in units:
                if unit not in readable:
                    self._mark_unknown(unit)
        except RetryableError:
            self._inputs.forget([units[0].path])  # it would fail again if the cache of inputs is wrong
            raise
        return readable

    def _mark_unknown(self, unit: WorkUnit) -> None:
        number = self._numbers[unit.unit_id]
        if self._state[number] == _State.PUBLISHED:
            raise RetryableError(
                f"row_ids of a published file cannot be read now: {unit.path}; run the same command again"
            )
        self._units[number] = replace(unit, has_unknown_ids=True)

    def _read_rows(self, units: Sequence[WorkUnit], digest_N2: np.ndarray) -> bool:
        """Fill in the digests of successive units of a file; return False if they are not readable."""
        first, last = units[0], units[-1]
        rows = (first.part[0], last.part[1]) if first.part and last.part else None
        digest_C2 = digest_N2[self._positions(units)]
        try:
            is_complete = _read_digests(first, rows, digest_C2)
        except (DamagedInputError, DataRefusedError):
            is_complete = False
        if not is_complete:
            digest_C2[:] = 0
        for unit in units:
            unit_digest_C2 = digest_N2[self._positions([unit])]
            order_C = np.lexsort((unit_digest_C2[:, 1], unit_digest_C2[:, 0]))
            unit_digest_C2[order_C[mark_later(unit_digest_C2[order_C])]] = 0
        return is_complete

    def _compare(self) -> None:
        """Find the row that keeps each repeated id."""
        for id_R, position_R in self._digests.find_repeated():
            self._choose_first(id_R, position_R)

    def _choose_first(self, id_R: np.ndarray, position_R: np.ndarray) -> None:
        """Record the position of the row that keeps the id, for each other row to score.

        Args:
            id_R: (R,) number of the repeated id of each row.
            position_R: (R,) position of the row.
        """
        unit_R = self._unit_of(position_R)
        is_published_R = self._state[unit_R] == _State.PUBLISHED
        unlabeled = [self._unlabeled_rows(number) for number in np.unique(unit_R[is_published_R])]
        can_keep_R = (self._state[unit_R] != _State.FAILED) & ~np.isin(
            position_R, np.concatenate([np.zeros(0, int), *unlabeled])
        )
        # rows by id: first those that are published, then by position
        order_R = np.lexsort((position_R, ~is_published_R, id_R))
        order_R = order_R[can_keep_R[order_R]]
        id_R, position_R, is_published_R = id_R[order_R], position_R[order_R], is_published_R[order_R]
        _, first, inverse_R = np.unique(id_R, return_index=True, return_inverse=True)
        first_R = position_R[first][inverse_R]
        is_duplicate_R = ~is_published_R & (position_R != first_R)
        self._first_N[position_R[is_duplicate_R]] = first_R[is_duplicate_R] + 1

    def _unlabeled_rows(self, number: int) -> np.ndarray:
        """Return the positions of the rows without a label of a published unit."""
        if number not in self._unlabeled:
            unit = self._units[number]
            errors = read_error_rows(self._scores, [read_manifest(self._scores, unit.unit_id)])
            self._unlabeled[number] = errors["row"].to_numpy() - _first_row(unit) + self._starts[number]
        return self._unlabeled[number]

    def _waits(self, unit: WorkUnit) -> bool:
        """Return True if a unit keeps ids of this unit's rows and is not published."""
        first_place = self._first_N[self._positions([unit])].astype(np.int64)
        keepers = self._unit_of(first_place[first_place > 0] - 1)
        return bool((self._state[keepers] != _State.PUBLISHED).any())

    def _write_duplicates(self, unit: WorkUnit) -> WorkUnit:
        """Write the duplicates of a unit to a file, and return the unit with their number."""
        first_place = self._first_N[self._positions([unit])].astype(np.int64)
        rows = np.flatnonzero(first_place)
        if not len(rows):
            return unit
        first_position = first_place[rows] - 1
        first_unit = self._unit_of(first_position)
        first_rows = np.array([_first_row(self._units[number]) for number in first_unit])
        table = pa.table(
            {
                "row": rows + _first_row(unit),
                "first_row": first_rows + first_position - self._starts[first_unit],
                "first_path": [self._units[number].path for number in first_unit],
            }
        )
        pq.write_table(table, _duplicates_path(self._folder, unit.unit_id))
        return replace(unit, duplicates=len(rows))

    def _unit_of(self, position_R: np.ndarray) -> np.ndarray:
        # a unit without rows starts where the next one does; this finds the unit that holds the row
        return np.searchsorted(self._starts, position_R, side="right") - 1


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


def _read_digests(unit: WorkUnit, rows: tuple[int, int] | None, digest_C2: np.ndarray) -> bool:
    """Fill in the digests of rows of a unit's file; return False if it has more rows than were planned.

    Raises:
        DamagedInputError: The file is damaged.
        DataRefusedError: The file has another schema, or see `read_rows`.
        RetryableError: The file changed since the units were planned.
    """
    salt = b"" if unit.all_tasks else unit.task.encode()
    with open_input(unit.path, unit.digest) as file:
        check_schema(file, unit.path)
        # the file could not be read when the units were planned
        if rows is None and file.num_rows != len(digest_C2):
            return False
        row = 0
        for table in read_rows(file, unit.path, ("row_id",), rows, BatchLimits(BATCH_ROWS)):
            digests = row_id_digests(table["row_id"].to_pylist(), salt)
            digest_C2[row : row + len(digests)] = digests
            row += len(digests)
    return True


def _first_row(unit: WorkUnit) -> int:
    return unit.part[0] if unit.part else 0


def _duplicates_path(folder: Path, unit_id: str) -> Path:
    return folder / f"{unit_id}.duplicates.parquet"
