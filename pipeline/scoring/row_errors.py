"""Rows that cannot be scored, each with its reason: they are published beside the labels, so that rows in are
labels and errors together.

Shape legend: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import COLUMNS, TEXT_COLUMNS, Column

MUST_SHOW = ("query", "ad_title")  # a judgement needs both

ERROR_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string()),  # null where that is the error
        pa.field("row", pa.int64(), False),  # number in the file, from 0
        pa.field("task", pa.string(), False),
        pa.field("reason", pa.string(), False),
        pa.field("bundle_sha256", pa.string(), False),
    ]
)


def part_rows(
    table: pa.Table, task_name: str, first_row: int, bundle_sha256: str
) -> tuple[pa.Table, pa.Table]:
    """(rows to score, errors in ERROR_SCHEMA) of contract rows of one task; `first_row` is the first one's
    number in its file.

    Labels and weights are not looked at: scoring has no use for them.
    """
    reason_N = np.full(table.num_rows, "", dtype=object)
    for column in COLUMNS:
        if column.name in ("row_id", "market", *TEXT_COLUMNS):
            for reason, bad_N in column_errors(table.column(column.name), column):
                reason_N[bad_N & (reason_N == "")] = reason
    repeated_N = repeats(table.column("row_id"))
    reason_N[repeated_N & (reason_N == "")] = "row_id repeats"
    bad = np.flatnonzero(reason_N != "")
    errors = {
        "row_id": table.column("row_id").take(pa.array(bad)),
        "row": bad + first_row,
        "task": [task_name] * len(bad),
        "reason": reason_N[bad].tolist(),
        "bundle_sha256": [bundle_sha256] * len(bad),
    }
    return table.filter(pa.array(reason_N == "")), pa.table(errors, schema=ERROR_SCHEMA)


def column_errors(values: pa.ChunkedArray, column: Column) -> list[tuple[str, np.ndarray]]:
    """(reason, (N,) where) of one text column."""
    found = []
    if not column.nullable:
        found.append((f"{column.name} is null", pc.is_null(values).to_numpy()))
    if column.name in MUST_SHOW:
        shown = pc.utf8_trim_whitespace(values)
        found.append(
            (f"{column.name} is blank", pc.equal(pc.utf8_length(shown), 0).fill_null(False).to_numpy())
        )
    if column.max_chars is not None:
        longer = pc.greater(pc.utf8_length(values), column.max_chars).fill_null(False).to_numpy()
        found.append((f"{column.name} has over {column.max_chars:,} characters", longer))
    return found


def repeats(row_ids: pa.ChunkedArray) -> np.ndarray:
    """(N,) ids that an earlier row has."""
    numbers = row_ids.combine_chunks().dictionary_encode("encode").indices.to_numpy()
    repeated_N = np.ones(len(row_ids), dtype=bool)
    repeated_N[np.unique(numbers, return_index=True)[1]] = False
    return repeated_N
