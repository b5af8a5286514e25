"""Rows that cannot be scored, each with its reason.

They are published beside the labels, so that labels and errors together account for all rows in.

Shape legend: N rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.visible_text import mark_blank
from pipeline.schema import COLUMNS, TEXT_COLUMNS, Column

REQUIRED_VISIBLE_COLUMNS = ("row_id", "query", "ad_title")

ERROR_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string()),  # null where that is the error
        pa.field("row", pa.int64(), False),  # number in the file, from 0
        pa.field("task", pa.string(), False),
        pa.field("reason", pa.string(), False),
        pa.field("bundle_sha256", pa.string(), False),
    ]
)


def split_valid_rows(
    table: pa.Table,
    task_name: str,
    first_row: int,
    bundle_sha256: str,
    earlier_ids: Sequence[pa.ChunkedArray] = (),
) -> tuple[pa.Table, pa.Table]:
    """Separate rows that can be scored from those that cannot.

    Labels and weights are not checked: scoring does not use them.

    Args:
        table: Contract rows of one task.
        task_name: The task.
        first_row: Number of the table's first row in its file.
        bundle_sha256: Digest of the model's bundle.
        earlier_ids: Row ids of earlier parts of the unit.

    Returns:
        (valid rows, errors in ERROR_SCHEMA).
    """
    reason_N = np.full(table.num_rows, "", dtype=object)
    for column in COLUMNS:
        if column.name in ("row_id", "market", *TEXT_COLUMNS):
            for reason, bad_N in _column_errors(table.column(column.name), column):
                reason_N[bad_N & (reason_N == "")] = reason
    repeated_N = _mark_repeated(table.column("row_id"))
    for row_ids in earlier_ids:
        repeated_N |= pc.is_in(table.column("row_id"), value_set=row_ids).to_numpy()
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


def _column_errors(values: pa.ChunkedArray, column: Column) -> list[tuple[str, np.ndarray]]:
    """Return (reason, mask (N,)) of each kind of error in a text column."""
    errors = []
    if not column.nullable:
        errors.append((f"{column.name} is null", pc.is_null(values).to_numpy()))
    if column.name in REQUIRED_VISIBLE_COLUMNS:
        errors.append((f"{column.name} is blank", mark_blank(values)))
    if column.max_chars is not None:
        too_long = pc.greater(pc.utf8_length(values), column.max_chars).fill_null(False).to_numpy()
        errors.append((f"{column.name} has over {column.max_chars:,} characters", too_long))
    return errors


def _mark_repeated(row_ids: pa.ChunkedArray) -> np.ndarray:
    """Return a mask (N,) of rows whose id an earlier row has."""
    numbers = row_ids.combine_chunks().dictionary_encode("encode").indices.to_numpy()
    repeated_N = np.ones(len(row_ids), dtype=bool)
    repeated_N[np.unique(numbers, return_index=True)[1]] = False
    return repeated_N
