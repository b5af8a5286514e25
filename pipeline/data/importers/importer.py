"""From lines to contract rows: what every import shares.

Each line of a source becomes one row, or one line of the quarantine with a reason: rows and quarantined lines
add up to the lines read. Judgements of a query and product judged before are kept, and so are texts longer
than the contract allows: the validation gate judges these. What becomes of the texts stands in
pipeline/data/importers/text_cleaning.py. Memory is bounded whatever the size of a source.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.importers.duplicate_ids import RowIdHashes, row_id_hash
from pipeline.data.importers.lookup_table import Lookup
from pipeline.data.importers.records import Line
from pipeline.data.importers.rejects import BadLineError, Quarantine, quarantine_file
from pipeline.data.writer import StagedRows
from pipeline.errors import DataRefusedError
from pipeline.schema import ROW_SCHEMA

BATCH_ROWS = 4_096  # rows gathered before they are handed to the writer

BATCH_CHARS = 16 * 2**20  # or their texts, where these are long

MAX_REPEATED_IDS = 1_000_000  # ids that repeat are kept in memory: about 150 MB

Row = dict[str, Any]  # contract columns by name; columns left out are null

RowBuilder = Callable[[Line], tuple[str, Row]]  # task and row of a line; BadLineError if it cannot be one

# key and texts of a line for a Lookup; BadLineError as above
EntryBuilder = Callable[[Line], tuple[str, str | None, str | None]]


@dataclass(frozen=True)
class ImportCounts:
    """What an import did with every judgement of its source."""

    rows: Mapping[str, int]  # rows published, by task
    quarantined: Mapping[str, int]  # judgements left out, by reason; reasons that held for none are absent


@dataclass(frozen=True)
class Source:
    """A file of judgements and how its lines become rows."""

    name: str  # names quarantine/<name>.parquet
    path: Path
    read: Callable[[], Iterable[Line]]  # starts anew at every call
    build_row: RowBuilder
    side_names: Sequence[str] = ()  # of files read by `read_side_file` before


def import_lines(source: Source, staged: StagedRows) -> ImportCounts:
    """Publish the lines of a source as rows, and those that cannot be rows in its quarantine.

    Of rows with the same id the first is kept; a second pass finds it where there are such. DataRefusedError:
    too many lines are bad (pipeline/data/importers/rejects.py), or none can be used. Nothing is published
    then, nor after any other error.
    """
    quarantine, rows, repeated = _stage_rows(source, staged, frozenset())
    if len(repeated) > MAX_REPEATED_IDS:
        raise DataRefusedError(
            f"{len(repeated):,} ids of {source.path} are used more than once; map a column that tells its "
            "lines apart"
        )
    if repeated:
        staged.discard_rows()
        quarantine, rows, _ = _stage_rows(source, staged, repeated)
    quarantine.close()
    reasons = dict(sorted(quarantine.reasons.items()))
    if rows.total() + sum(reasons.values()) != quarantine.num_lines:
        raise AssertionError(
            f"of {quarantine.num_lines} lines of {source.path} {rows.total()} became rows and {reasons} "
            "were left out"
        )
    if not rows:
        raise DataRefusedError(
            f"{source.path} gave no row; lines left out, by reason: {reasons or 'it holds none'}"
        )
    return ImportCounts(
        staged.publish([quarantine_file(name) for name in (source.name, *source.side_names)]), reasons
    )


def read_side_file(
    path: Path,
    name: str,
    lines: Iterable[Line],
    build_entry: EntryBuilder,
    lookup: Lookup,
    staged: StagedRows,
) -> None:
    """Keep the lines of a file of queries or products by key; bad ones, and those whose key is there already,
    go to quarantine/<name>.parquet.
    """
    quarantine = Quarantine(staged.dir / quarantine_file(name), path)
    for line in lines:
        quarantine.num_lines += 1
        try:
            if line.defect:
                raise BadLineError(line.defect)
            if not lookup.put(*build_entry(line)):
                raise BadLineError("repeated_id")
        except BadLineError as error:
            quarantine.add(line, str(error))
    quarantine.close()


def required(text: str | None, reason: str) -> str:
    """The text; BadLineError with the reason if there is none."""
    if not text:
        raise BadLineError(reason)
    return text


def label_index(text: str | None, labels: Sequence[str]) -> int:
    """The place of a source's label on its scale, worst first; BadLineError if it is not on it."""
    try:
        return labels.index((text or "").strip())
    except ValueError as error:
        raise BadLineError("unknown_label") from error


def _stage_rows(
    source: Source, staged: StagedRows, repeated: frozenset[bytes]
) -> tuple[Quarantine, Counter[str], frozenset[bytes]]:
    """One pass over the lines: the quarantine, rows by task, and hashes of the row ids that repeat other than
    those known.
    """
    quarantine = Quarantine(staged.dir / quarantine_file(source.name), source.path)
    seen: set[str] = set()
    with RowIdHashes(staged.dir / "row_ids") as hashes:
        batches = _Batches(staged, hashes)
        for line in source.read():
            quarantine.num_lines += 1
            try:
                if line.defect:
                    raise BadLineError(line.defect)
                task, row = source.build_row(line)
                if repeated and row_id_hash(row["row_id"]) in repeated:
                    if row["row_id"] in seen:
                        raise BadLineError("repeated_id")
                    seen.add(row["row_id"])
            except BadLineError as error:
                quarantine.add(line, str(error))
            else:
                batches.add(task, row)
        batches.flush()
        return quarantine, batches.num_rows, frozenset() if repeated else hashes.repeated()


class _Batches:
    """Rows gathered for the writer, of all tasks together a bounded number and length."""

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
