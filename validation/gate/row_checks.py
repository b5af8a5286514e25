"""Row-by-row checks of one file, batch by batch.

They find the bad rows with their reasons, the hashes that other files are compared by, and a sample for Great
Expectations.

Shape legend: M rows of a batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.schema import COLUMNS, ROW_SCHEMA, TEXT_COLUMNS
from validation.gate.data_docs import NUM_EXAMPLES
from validation.gate.expectations import build_checks, failing_rows
from validation.text.hashing import hash_column
from validation.text.scripts import count_foreign_texts
from validation.text.text_bytes import normalize_texts

SAMPLE_ROWS = 2_000  # rows of a file that Great Expectations sees; all rows of smaller files

SAMPLE_BYTES = 16 * 2**20  # of the first rows, and as much of later bad rows

NOT_UTF8 = "not_utf8"  # reason of a row whose text is not UTF-8; the other reasons are names of checks

KEY_SCHEMA = pa.schema([("row_id_hash", pa.uint64()), ("pair_hash", pa.uint64()), ("label", pa.int32())])

REASON_SCHEMA = pa.schema([("row", pa.int64()), ("reasons", pa.list_(pa.string()))])

_PAIR_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses no bit


class RowExample(NamedTuple):
    """A row that fails a check."""

    row: int  # number in the file
    row_id: str | None
    value: Any  # of the column that is checked; a JSON value


class RowScan:
    """Row checks of one file, with the counts and examples that they collect.

    Args:
        task: Task that the file belongs to.
        labels_required: True if each row must carry a label.
        scripts: Scripts that the texts are expected in; none: any.
    """

    def __init__(self, task: Task, labels_required: bool, scripts: Sequence[str]) -> None:
        # row_id_unique needs all files: cross_file_checks.py
        self.checks = [
            check
            for check in build_checks(task, labels_required)
            if check.failing_mask and check.name != "row_id_unique"
        ]
        self.num_rows = 0
        self.num_bad = 0
        self.failing: dict[str, int] = {}  # rows by reason
        self.examples: dict[str, list[RowExample]] = {}  # by reason
        self.label_counts = np.zeros(len(task.labels), dtype=np.int64)
        self.foreign: Counter[str] = Counter()  # by column: texts in other scripts than expected
        self._scripts = scripts
        self._head: list[pa.Table] = []
        self._later_bad_rows: list[pa.Table] = []

    def check_batch(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Check a batch of rows and add it to the counts.

        Returns:
            Keys of all rows (KEY_SCHEMA), and reasons of the bad rows (REASON_SCHEMA).
        """
        table, undecoded_M = repair_text(table)
        reasons: dict[int, list[str]] = {}
        for check in self.checks:
            rows = failing_rows(check, table)
            self._record_failures(check.name, table, check.column, rows, reasons)
        self._record_failures(NOT_UTF8, table, "row_id", np.flatnonzero(undecoded_M), reasons)
        bad = sorted(reasons)
        self._keep_sample(table, bad)
        if self._scripts:
            self.foreign.update(count_foreign_texts(table, self._scripts))
        labels = table["label"].fill_null(-1).to_numpy()
        on_scale = labels[(labels >= 0) & (labels < len(self.label_counts))]
        self.label_counts += np.bincount(on_scale, minlength=len(self.label_counts))
        rows_in_file = [self.num_rows + row for row in bad]
        self.num_rows += table.num_rows
        self.num_bad += len(bad)
        keys = pa.table(
            [pa.array(hash_column(table["row_id"])), pa.array(hash_pairs(table)), pa.array(labels)],
            schema=KEY_SCHEMA,
        )
        return keys, pa.table([rows_in_file, [reasons[row] for row in bad]], schema=REASON_SCHEMA)

    def _record_failures(
        self, reason: str, table: pa.Table, column: str, rows: np.ndarray, reasons: dict[int, list[str]]
    ) -> None:
        if not len(rows):
            return
        self.failing[reason] = self.failing.get(reason, 0) + len(rows)
        for row in rows.tolist():
            reasons.setdefault(row, []).append(reason)
        examples = self.examples.setdefault(reason, [])
        for row in rows[: NUM_EXAMPLES - len(examples)].tolist():
            value = table[column][row].as_py()
            if isinstance(value, float) and not math.isfinite(value):
                value = str(value)  # JSON has finite numbers only
            examples.append(RowExample(self.num_rows + row, table["row_id"][row].as_py(), value))

    def _keep_sample(self, table: pa.Table, bad: list[int]) -> None:
        head = _leading_rows(table, self._head)
        if head.num_rows:
            self._head.append(head)
        beyond_head = [row for row in bad if row >= head.num_rows]
        if beyond_head:
            later = _leading_rows(table.take(beyond_head[:SAMPLE_ROWS]), self._later_bad_rows)
            if later.num_rows:
                self._later_bad_rows.append(later)

    def sample(self) -> pa.Table:
        """Return the bad rows beyond the first rows of the file, then the first rows."""
        parts = (ROW_SCHEMA.empty_table(), *self._later_bad_rows, *self._head)
        return pa.concat_tables([table.cast(nullable(ROW_SCHEMA)) for table in parts])


def _leading_rows(table: pa.Table, earlier: Sequence[pa.Table]) -> pa.Table:
    """Return the first rows of a table for which a sample has room after `earlier` ones."""
    room = SAMPLE_BYTES - sum(part.nbytes for part in earlier)
    rows = table.slice(0, SAMPLE_ROWS - sum(part.num_rows for part in earlier) if room > 0 else 0)
    while rows.num_rows > 1 and rows.nbytes > room:
        rows = rows.slice(0, rows.num_rows // 2)
    return rows


def nullable(schema: pa.Schema) -> pa.Schema:
    """Return the schema with null allowed in every column, as bad rows need it."""
    return pa.schema([pa.field(f.name, f.type) for f in schema])


def repair_text(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Replace bytes that are not UTF-8 by U+FFFD.

    Returns:
        The table, and a mask of the rows that held such bytes (M,).
    """
    undecoded_M = np.zeros(table.num_rows, dtype=bool)
    try:
        table.validate(full=True)
        return table, undecoded_M
    except pa.ArrowInvalid:
        pass
    for index, column in enumerate(COLUMNS):
        if column.type == pa.string():
            raw: list[bytes | None] = table[column.name].cast(pa.binary()).to_pylist()
            texts = [None if value is None else value.decode("utf-8", "replace") for value in raw]
            pairs = zip(raw, texts, strict=True)
            undecoded_M |= np.array(
                [value is not None and (text or "").encode() != value for value, text in pairs], dtype=bool
            )
            table = table.set_column(index, column.name, pa.array(texts, pa.string()))
    return table, undecoded_M


def hash_pairs(table: pa.Table) -> np.ndarray:
    """Hash each row's query and ad texts (M,), normalized as the split normalizes queries."""
    pair_M = np.zeros(table.num_rows, dtype=np.uint64)
    for name in TEXT_COLUMNS:
        pair_M *= _PAIR_FACTOR
        if table[name].null_count < table.num_rows:  # null counts as empty text, whose hash is 0
            pair_M += np.concatenate([hash_column(normalize_texts(chunk)) for chunk in table[name].chunks])
    return pair_M
