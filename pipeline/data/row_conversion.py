"""Columns of files by other writers as columns of the row contract, if nothing is lost.

pipeline/schema.py says which types are taken. A value that does not convert is named.
"""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataRefusedError
from pipeline.schema import COLUMNS, Column

_COLUMN = {column.name: column for column in COLUMNS}


def convert_rows(batch: pa.RecordBatch, names: Sequence[str], path: Path | str, first_row: int) -> pa.Table:
    """Return the named columns of the contract in its types; a column that the file lacks is null.

    Texts are not checked for UTF-8.

    Args:
        batch: Rows of a file without `schema_differences`.
        names: Columns of the contract.
        path: The file, for messages.
        first_row: Number of the first row of the batch in its file.

    Raises:
        DataRefusedError: A value does not convert without loss.
    """
    present = set(batch.schema.names)
    columns = [
        _convert(batch.column(name), _COLUMN[name], path, first_row)
        if name in present
        else pa.nulls(batch.num_rows, _COLUMN[name].type)
        for name in names
    ]
    return pa.table(columns, names=list(names))


def cast_values(values: pa.Array | pa.ChunkedArray, kind: pa.DataType, safe: bool = True) -> pa.Array:
    """Return values in the type of a column of the contract.

    Raises:
        ArrowException: A value does not convert. Numbers are rounded to float32, but stay finite and above 0.
        ValueError: As ArrowException.
    """
    converted = pc.cast(values, kind, safe=safe)
    if pa.types.is_floating(kind) and values.type != kind and not pa.types.is_null(values.type):
        exact = pc.cast(values, pa.float64(), safe=False)
        is_lost = pc.or_(
            pc.and_(pc.equal(converted, 0), pc.not_equal(exact, 0)),
            pc.and_(pc.is_inf(converted), pc.is_finite(exact)),
        )
        if pc.any(is_lost).as_py():
            raise pa.ArrowInvalid(f"a number is 0 or infinite as {kind}")
    return converted


def is_lost_in_float32(value: float) -> bool:
    """Return whether a finite number becomes 0 or infinite in the contract's type of numbers."""
    rounded = ctypes.c_float(value).value
    return not math.isfinite(rounded) or bool(rounded) != bool(value)


def _convert(values: pa.Array, column: Column, path: Path | str, first_row: int) -> pa.Array:
    if values.type == column.type:
        return values
    # bytes become text as they are: the reader decides what it does with text that is not UTF-8
    is_bytes = pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
    try:
        return cast_values(values, column.type, safe=not is_bytes)
    except (pa.ArrowException, ValueError) as error:
        row, value = _first_unconvertible(values, column.type)
        raise DataRefusedError(
            f"{path}: column {column.name} holds {value} in row {first_row + row:,}, which is no "
            f"{column.type} without loss; correct it, or bring the file in with `relevance import table`"
        ) from error


def _first_unconvertible(values: pa.Array, kind: pa.DataType) -> tuple[int, object]:
    """Return position and value of the first value that does not convert."""
    for position in range(len(values)):
        try:
            cast_values(values.slice(position, 1), kind)
        except (pa.ArrowException, ValueError):
            return position, values[position].as_py()
    raise AssertionError(f"each value converts to {kind} alone, but not all together")
