"""Turn records of a source into contract rows: the part that all importers share.

Each record becomes one row, or one reject with a reason: rows and rejects add up to the records read.
Repeated labels of a query and product are kept, and so are texts longer than the contract allows: the data
gate decides about these. pipeline/data/importers/text_cleaning.py says how texts are cleaned. Memory is
bounded for any size of a source.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.importers.duplicate_ids import RowIdHashes, row_id_hash
from pipeline.data.importers.lookup_table import Lookup
from pipeline.data.importers.records import SourceRecord
from pipeline.data.importers.rejects import BadRecordError, Rejects, rejects_path
from pipeline.data.writer import StagedRows
from pipeline.errors import DataRefusedError
from pipeline.schema import ROW_SCHEMA

BATCH_ROWS = 4_096  # rows per table for the writer

BATCH_CHARS = 16 * 2**20  # characters per table, if texts are long

MAX_REPEATED_IDS = 1_000_000  # repeated ids are kept in memory: about 150 MB

Row = dict[str, Any]  # contract columns by name; a missing column is null

RowBuilder = Callable[[SourceRecord], tuple[str, Row]]  # task and row; raises BadRecordError

# key and two texts for a Lookup; raises BadRecordError
EntryBuilder = Callable[[SourceRecord], tuple[str, str | None, str | None]]


@dataclass(frozen=True)
class ImportCounts:
    """Numbers of rows and rejects of an import."""

    rows: Mapping[str, int]  # rows published, by task
    rejected: Mapping[str, int]  # records without a row, by reason; reasons without a record are absent


@dataclass(frozen=True)
class RecordSource:
    """A file of labels and the functions that turn its records into rows."""

    name: str  # of quarantine/<name>.parquet
    path: Path
    read: Callable[[], Iterable[SourceRecord]]  # starts at the first record at every call
    build_row: RowBuilder
    lookup_names: Sequence[str] = ()  # names of the files that `fill_lookup` has read
    tasks: Sequence[str] = ()  # whose earlier rows are replaced although no record becomes a row of them


def import_records(source: RecordSource, staged: StagedRows) -> ImportCounts:
    """Publish the records of a source as rows, and the others as rejects.

    Of rows with the same id the first is kept; if there are any, a second pass finds it. After any error
    nothing is published.

    Raises:
        DataRefusedError: Too many records are bad (pipeline/data/importers/rejects.py), or none became a row.
    """
    rejects, rows, repeated = _stage_rows(source, staged)
    if len(repeated) > MAX_REPEATED_IDS:
        raise DataRefusedError(
            f"{len(repeated):,} ids of {source.path} are used more than once; map a column with unique ids"
        )
    if repeated:
        staged.discard_rows()
        rejects, rows, _ = _stage_rows(source, staged, repeated)
    rejects.check_share()
    reasons = dict(sorted(rejects.reasons.items()))
    if rows.total() + sum(reasons.values()) != rejects.num_records:
        raise AssertionError(
            f"{source.path} has {rejects.num_records} records but {rows.total()} rows and rejects {reasons}"
        )
    if not rows:
        cause = f"rejects by reason: {reasons}" if reasons else "it holds no record"
        raise DataRefusedError(f"{source.path} gave no row; {cause}")
    rejects_files = [rejects_path(name) for name in (source.name, *source.lookup_names)]
    return ImportCounts(staged.publish(rejects_files, source.tasks), reasons)


def fill_lookup(
    path: Path,
    name: str,
    records: Iterable[SourceRecord],
    build_entry: EntryBuilder,
    lookup: Lookup,
    staged: StagedRows,
) -> None:
    """Store the records of a file of queries or products by key.

    Bad records and those with a repeated key go to quarantine/<name>.parquet.
    """

    def put(record: SourceRecord) -> None:
        if not lookup.put(*build_entry(record)):
            raise BadRecordError("repeated_id")

    with Rejects(staged.dir / rejects_path(name), path) as rejects:
        for _ in rejects.build_all(records, put):
            pass
    rejects.check_share()


def require_text(text: str | None, reason: str) -> str:
    """Return the text; raise BadRecordError with the reason if it is empty or None."""
    if not text:
        raise BadRecordError(reason)
    return text


def label_index(text: str | None, labels: Sequence[str]) -> int:
    """Return the index of a label on its scale, worst first; raise BadRecordError if it is unknown."""
    try:
        return labels.index((text or "").strip())
    except ValueError as error:
        raise BadRecordError("unknown_label") from error


def _stage_rows(
    source: RecordSource, staged: StagedRows, repeated: frozenset[bytes] = frozenset()
) -> tuple[Rejects, Counter[str], frozenset[bytes]]:
    """Read all records once, and stage their rows and rejects.

    Args:
        repeated: Hashes of row ids of which only the first row is kept.

    Returns:
        The rejects, the number of rows by task, and the hashes of repeated row ids among the rows.
    """
    seen: set[str] = set()

    def build_row(record: SourceRecord) -> tuple[str, Row]:
        task, row = source.build_row(record)
        if repeated and row_id_hash(row["row_id"]) in repeated:
            if row["row_id"] in seen:
                raise BadRecordError("repeated_id")
            seen.add(row["row_id"])
        return task, row

    with (
        RowIdHashes(staged.dir / "row_ids") as hashes,
        Rejects(staged.dir / rejects_path(source.name), source.path) as rejects,
    ):
        batches = _Batches(staged, hashes)
        for task, row in rejects.build_all(source.read(), build_row):
            batches.add(task, row)
        batches.flush()
        return rejects, batches.num_rows, hashes.find_repeated()


class _Batches:
    """Buffer of rows for the writer, with a bounded number and length of rows over all tasks."""

    def __init__(self, staged: StagedRows, hashes: RowIdHashes) -> None:
        self._staged, self._hashes = staged, hashes
        self._rows: defaultdict[str, list[Row]] = defaultdict(list)
        self._num_waiting = self._chars_waiting = 0
        self.num_rows: Counter[str] = Counter()

    def add(self, task: str, row: Row) -> None:
        self._rows[task].append(row)
        self._num_waiting += 1
        self._chars_waiting += sum(len(value) for value in row.values() if isinstance(value, str))
        if self._num_waiting >= BATCH_ROWS or self._chars_waiting >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        for task, rows in self._rows.items():
            self._hashes.add(row["row_id"] for row in rows)
            self._staged.write(task, pa.Table.from_pylist(rows, schema=ROW_SCHEMA))
            self.num_rows[task] += len(rows)
        self._rows.clear()
        self._num_waiting = self._chars_waiting = 0
