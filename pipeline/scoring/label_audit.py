"""Audit of published labels: a sample of `label_sample` in which people filled in their judgements.

A person judges each row `relevant` or `irrelevant`. Precision is the share of rows with decision relevant
that people judge relevant. The defect rate is the share of all labeled rows whose decision is wrong: relevant
where people judge irrelevant, or the other way round. `abstain` is no decision, so it is never wrong.
"""

import csv
import gzip
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.evaluation.stratified import Proportion, Stratum, estimate_proportion
from pipeline.scoring.table_files import SUFFIXES

JUDGEMENTS = ("relevant", "irrelevant")

DECISIONS = (*JUDGEMENTS, "abstain")

REQUIRED_COLUMNS = (
    "row_id", "task", "judgement", "decision", "stratum", "stratum_rows", "stratum_drawn", "weight",
    "bundle_sha256",
)  # fmt: skip

# spreadsheets write fewer digits than they read
WEIGHT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class AuditRow:
    """One judged row."""

    task: str
    decision: str
    judgement: str
    stratum: str

    @property
    def is_wrong(self) -> bool:
        """Return True if there is a decision and people judge otherwise."""
        return self.decision in JUDGEMENTS and self.decision != self.judgement


@dataclass(frozen=True)
class TaskAudit:
    """Result of one task; precision is None if no row was decided relevant."""

    task: str
    precision: Proportion | None
    defect_rate: Proportion


class Audit:
    """Checked rows of a filled-in file, and the sizes of their strata."""

    def __init__(self, rows: Sequence[AuditRow], sizes: Mapping[str, int]) -> None:
        self.rows, self.sizes = rows, sizes

    def results(self) -> list[TaskAudit]:
        """Return the result of each task, sorted by name."""
        return [self._task_result(task) for task in sorted({row.task for row in self.rows})]

    def _task_result(self, task: str) -> TaskAudit:
        rows = [row for row in self.rows if row.task == task]
        positive = [row for row in rows if row.decision == "relevant"]
        return TaskAudit(
            task,
            self._estimate(positive, lambda row: row.judgement == "relevant") if positive else None,
            self._estimate(rows, lambda row: row.is_wrong),
        )

    def _estimate(self, rows: Sequence[AuditRow], is_hit: Callable[[AuditRow], bool]) -> Proportion:
        """Estimate a share over whole strata: no stratum has rows of two tasks or decisions."""
        drawn = Counter(row.stratum for row in rows)
        hits = Counter(row.stratum for row in rows if is_hit(row))
        return estimate_proportion(
            [Stratum(self.sizes[name], count, hits[name]) for name, count in sorted(drawn.items())]
        )


def read_audit(path: Path) -> Audit:
    """Read and check a filled-in sample.

    Raises:
        ConfigError: The file does not exist or is no parquet or csv file.
        DamagedInputError: It cannot be read as what its suffix says.
        DataRefusedError: A column or row is missing, or a cell is empty or altered.
    """
    cells = _read_cells(path)
    if lost := [name for name in REQUIRED_COLUMNS if name not in cells]:
        raise DataRefusedError(
            f"columns missing in {path}: {', '.join(lost)}; fill in the file that `relevance sample-labels` "
            "wrote, with commas between the columns"
        )
    if not cells["row_id"]:
        raise DataRefusedError(f"file has no rows: {path}; fill in what `relevance sample-labels` wrote")
    rows, sizes, drawn = [], {}, {}
    strata: dict[str, tuple[str, str, int, int]] = {}
    keys: dict[tuple[str, str, str], int] = {}
    for number in range(len(cells["row_id"])):
        cell = _Row(path, number + 2, {name: column[number] for name, column in cells.items()})
        row = cell.parse()
        size, count = cell.number("stratum_rows"), cell.number("stratum_drawn")
        facts = (row.task, row.decision, size, count)
        if strata.setdefault(row.stratum, facts) != facts:
            names = ("task", "decision", "stratum_rows", "stratum_drawn")
            column = next(
                name
                for name, one, other in zip(names, facts, strata[row.stratum], strict=True)
                if one != other
            )
            raise cell.refuse(column, f"differs from other rows of stratum {row.stratum!r}")
        cell.check_weight(size, count)
        first = keys.setdefault((cell.text("row_id"), row.task, cell.text("bundle_sha256")), number + 2)
        if first != number + 2:
            raise cell.refuse("row_id", f"is that of row {first} too")
        rows.append(row)
        sizes[row.stratum], drawn[row.stratum] = size, count
    _check_complete(path, rows, drawn)
    return Audit(rows, sizes)


class _Row:
    """Cells of one row; the header is row 1, as spreadsheets count."""

    def __init__(self, path: Path, number: int, cells: Mapping[str, object]) -> None:
        self.path, self.row_number, self.cells = path, number, cells

    def parse(self) -> AuditRow:
        """Return the row; DataRefusedError for an empty or unknown judgement or decision."""
        judgement = self.text("judgement").strip().lower()
        if not judgement:
            raise self.refuse("judgement", f"is empty; write one of: {', '.join(JUDGEMENTS)}")
        if judgement not in JUDGEMENTS:
            raise self.refuse("judgement", f"is none of: {', '.join(JUDGEMENTS)}")
        decision = self.text("decision")
        if decision not in DECISIONS:
            raise self.refuse("decision", f"is none of: {', '.join(DECISIONS)}")
        for name in ("task", "stratum"):
            if not self.text(name):
                raise self.refuse(name, "is empty")
        return AuditRow(self.text("task"), decision, judgement, self.text("stratum"))

    def text(self, name: str) -> str:
        """Return a cell as text."""
        value = self.cells[name]
        return "" if value is None else str(value)

    def number(self, name: str) -> int:
        """Return a cell as a positive integer."""
        try:
            number = float(self.text(name))
        except ValueError as error:
            raise self.refuse(name, "is not a number") from error
        if not (number >= 1 and number == int(min(number, 2**53))):
            raise self.refuse(name, "is not a number of rows")
        return int(number)

    def check_weight(self, size: int, drawn: int) -> None:
        """Check the weight against the sizes of the stratum."""
        try:
            weight = float(self.text("weight"))
        except ValueError as error:
            raise self.refuse("weight", "is not a number") from error
        if drawn > size:
            raise self.refuse("stratum_drawn", f"is more than stratum_rows {size}")
        if not abs(weight * drawn / size - 1) <= WEIGHT_TOLERANCE:
            raise self.refuse("weight", f"is not stratum_rows / stratum_drawn = {size / drawn:g}")

    def refuse(self, column: str, problem: str) -> DataRefusedError:
        """Return the error about a cell."""
        return DataRefusedError(
            f"row {self.row_number}, column {column} of {self.path} {problem}: {self.text(column)[:80]!r}; "
            "correct it and run the same command again"
        )


def _check_complete(path: Path, rows: Sequence[AuditRow], drawn: Mapping[str, int]) -> None:
    counts = Counter(row.stratum for row in rows)
    for stratum, count in drawn.items():
        if counts[stratum] != count:
            raise DataRefusedError(
                f"rows of stratum {stratum!r} in {path} are {counts[stratum]} in place of {count}, column "
                "stratum_drawn; put back the rows that were removed, or remove those that were added"
            )


def _read_cells(path: Path) -> dict[str, list[object]]:
    """Return the columns of a file by name."""
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(f"kind of file unknown: {path}; name one that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"file does not exist: {path}; name the file of `relevance sample-labels`")
    try:
        if path.name.endswith(".parquet"):
            table = pq.read_table(path, partitioning=None)
            return {name: table[name].to_pylist() for name in table.column_names}
        packed = path.read_bytes()
        content = gzip.decompress(packed) if path.name.endswith(".gz") else packed
        lines = content.decode("utf-8-sig").splitlines(keepends=True)  # spreadsheets add a byte order mark
        header, *records = [record for record in csv.reader(lines, strict=True) if record] or [[]]
    except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error) as error:
        raise DamagedInputError(
            f"file is damaged, or not what its suffix says: {path} ({error}); save it as UTF-8 csv or parquet"
        ) from error
    for number, record in enumerate(records, 2):
        if len(record) != len(header):
            raise DataRefusedError(
                f"row {number} of {path} has {len(record)} columns, and the header {len(header)}; "
                "correct it and run the same command again"
            )
    return {name: [record[place] for record in records] for place, name in enumerate(header)}
