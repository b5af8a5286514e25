"""The rows of one file as they go by: which are bad and why, what other files must be compared with, and a
sample for Great Expectations.

Shape legend: M rows of a batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.schema import COLUMNS, ROW_SCHEMA, TEXT_COLUMNS
from validation.gate.data_docs import NUM_EXAMPLES
from validation.gate.expectations import Check, build_checks, failing_rows
from validation.text.hashing import hash_column
from validation.text.scripts import count_foreign
from validation.text.text_bytes import normalise_texts

SAMPLE_ROWS = 2_000  # rows of a file that Great Expectations sees; all rows of smaller files

# reason of a row with bytes that are no text; the other reasons are the names of checks
NOT_UTF8 = "not_utf8"

KEY_SCHEMA = pa.schema([("row_id_hash", pa.uint64()), ("pair_hash", pa.uint64()), ("label", pa.int32())])

REASON_SCHEMA = pa.schema([("row", pa.int64()), ("reasons", pa.list_(pa.string()))])


class RowScan:
    """Counts and examples gathered while a file goes by."""

    def __init__(self, task: Task, judged: bool, scripts: Sequence[str]) -> None:
        self.checks = [
            check for check in build_checks(task, judged) if check.failing and check.name != "row_id_unique"
        ]
        self.num_rows = self.num_bad = 0
        self.failing: dict[str, int] = {}
        self.examples: dict[str, list[list[Any]]] = {}
        self.label_counts = np.zeros(len(task.labels), dtype=np.int64)
        self.foreign: Counter[str] = Counter()
        self._scripts = scripts
        self._head: list[pa.Table] = []
        self._offenders: list[pa.Table] = []

    def judge(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(keys, reasons) of a batch."""
        table, undecoded_M = repair_text(table)
        reasons: dict[int, list[str]] = {}
        for check in self.checks:
            self._note(table, check, failing_rows(check, table), reasons)
        self._note(table, None, np.flatnonzero(undecoded_M), reasons)
        bad = sorted(reasons)
        self._keep_sample(table, bad)
        if self._scripts:
            self.foreign.update(count_foreign(table, self._scripts))
        labels = table["label"].fill_null(-1).to_numpy()
        on_scale = labels[(labels >= 0) & (labels < len(self.label_counts))]
        self.label_counts += np.bincount(on_scale, minlength=len(self.label_counts))
        rows = [self.num_rows + row for row in bad]
        self.num_rows += table.num_rows
        self.num_bad += len(bad)
        keys = pa.table(
            [pa.array(hash_column(table["row_id"])), pa.array(hash_pairs(table)), pa.array(labels)],
            schema=KEY_SCHEMA,
        )
        return keys, pa.table([rows, [reasons[row] for row in bad]], schema=REASON_SCHEMA)

    def _note(
        self, table: pa.Table, check: Check | None, rows: np.ndarray, reasons: dict[int, list[str]]
    ) -> None:
        name, column = (check.name, check.column) if check else (NOT_UTF8, "row_id")
        if not len(rows):
            return
        self.failing[name] = self.failing.get(name, 0) + len(rows)
        for row in rows.tolist():
            reasons.setdefault(row, []).append(name)
        shown = self.examples.setdefault(name, [])
        for row in rows[: NUM_EXAMPLES - len(shown)].tolist():
            value = table[column][row].as_py()
            finite = not isinstance(value, float) or math.isfinite(value)  # json knows no other numbers
            shown.append([self.num_rows + row, table["row_id"][row].as_py(), value if finite else str(value)])

    def _keep_sample(self, table: pa.Table, bad: list[int]) -> None:
        missing = SAMPLE_ROWS - sum(part.num_rows for part in self._head)
        if missing > 0:
            self._head.append(table.slice(0, missing))
        beyond = [row for row in bad if row >= max(missing, 0)]
        room = SAMPLE_ROWS - sum(part.num_rows for part in self._offenders)
        if beyond and room > 0:
            self._offenders.append(table.take(beyond[:room]))

    def sample(self) -> pa.Table:
        """The first rows, and the bad ones among the others."""
        return pa.concat_tables(
            [
                table.cast(nullable(ROW_SCHEMA))
                for table in (ROW_SCHEMA.empty_table(), *self._head, *self._offenders)
            ]
        )


def nullable(schema: pa.Schema) -> pa.Schema:
    """The schema with null allowed everywhere, as bad rows need it."""
    return pa.schema([pa.field(f.name, f.type) for f in schema])


def repair_text(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The table with bytes that are no UTF-8 replaced by U+FFFD, and which rows held such bytes (M,)."""
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
    """A 64-bit hash of each row's query and ad texts, normalised as the split does it (M,)."""
    pair_M = np.zeros(table.num_rows, dtype=np.uint64)
    for name in TEXT_COLUMNS:
        pair_M *= np.uint64(0x9E3779B97F4A7C15)
        if table[name].null_count < table.num_rows:  # a null reads as empty text, whose hash is 0
            pair_M += np.concatenate([hash_column(normalise_texts(chunk)) for chunk in table[name].chunks])
    return pair_M
