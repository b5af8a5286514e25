"""Rows that cannot be scored, each with its reason.

They are published beside the labels, so that labels and errors together account for all rows in.

Shape legend: N rows.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.visible_text import mark_blank
from pipeline.schema import COLUMNS, TEXT_COLUMNS, Column

REQUIRED_VISIBLE_COLUMNS = ("row_id", "query", "ad_title")

REPEATED_ID = "row_id repeats"  # how the reason of a duplicate begins; it names the first place

ERROR_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string()),  # null where that is the error
        pa.field("row", pa.int64(), False),  # number in the file, from 0
        pa.field("task", pa.string(), False),
        pa.field("reason", pa.string(), False),
        pa.field("bundle_sha256", pa.string(), False),
    ]
)


class FirstPlaces:
    """First places of the row ids of a unit, whose rows may come in parts.

    Args:
        elsewhere: First place of each row whose id a row of another unit keeps, by its number in the file.
    """

    def __init__(self, elsewhere: Mapping[int, str] | None = None) -> None:
        self._elsewhere = elsewhere or {}
        self._known: dict[str, str] = {}

    def find_repeated(self, row_ids: pa.ChunkedArray, first_row: int) -> dict[int, str]:
        """Return the first place of the id of each row whose id another row keeps.

        Args:
            row_ids: Ids of the next part.
            first_row: Number of its first row in the file.

        Returns:
            The places by the row's number in the part.
        """
        repeated = {}
        for row, row_id in enumerate(row_ids.to_pylist()):
            if row_id is not None:
                place = self._elsewhere.get(row + first_row) or self._known.get(row_id)
                self._known.setdefault(row_id, place or f"row {row + first_row} of the same file")
                if place:
                    repeated[row] = place
        return repeated


def split_valid_rows(
    table: pa.Table,
    task_name: str,
    first_row: int,
    bundle_sha256: str,
    places: FirstPlaces | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Separate rows that can be scored from those that cannot.

    Labels and weights are not checked: scoring does not use them.

    Args:
        table: Contract rows of one task.
        task_name: The task.
        first_row: Number of the table's first row in its file.
        bundle_sha256: Digest of the model's bundle.
        places: First places of the unit's row ids, over its parts.

    Returns:
        (valid rows, errors in ERROR_SCHEMA).
    """
    reason_N = np.full(table.num_rows, "", dtype=object)
    for column in COLUMNS:
        if column.name in ("row_id", "market", *TEXT_COLUMNS):
            for reason, bad_N in _column_errors(table.column(column.name), column):
                reason_N[bad_N & (reason_N == "")] = reason
    for row, place in (places or FirstPlaces()).find_repeated(table.column("row_id"), first_row).items():
        reason_N[row] = reason_N[row] or f"{REPEATED_ID} {place}"
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
