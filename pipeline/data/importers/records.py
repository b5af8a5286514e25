"""Records of a source, and the reader of parquet files; memory is bounded for any size of a file.

A record that cannot be read is returned with its defect, and reading continues after it.
pipeline/data/importers/text_files.py reads text files.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.data.importers.text_cleaning import decode_text
from pipeline.data.parquet_batches import (
    NOT_PARQUET,
    BatchFile,
    BatchLimits,
    read_batches,
    translate_read_errors,
)
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.schema import TEXT_TYPES

READ_ROWS = 4_096  # rows of parquet decoded at a time: about 6 MB of product text

READ_BYTES = 16 * 2**20  # decoded at a time, where texts are long

_SCALARS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_null,
    pa.types.is_decimal,
)


class SourceRecord(NamedTuple):
    """One record of a source: its fields by column, or a defect."""

    # in text: number of its first line, from 1, as an editor counts; in parquet: number of the row, from 1
    number: int
    fields: Mapping[str, str | None]
    text: str = ""  # as in the source; empty for parquet
    defect: str | None = None  # a reason of pipeline/data/importers/rejects.py
    part: str = ""  # name of its file, if the source is a folder


def check_file(path: Path) -> Path:
    """Return the path of a source; raise ConfigError if it is not a file."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; point the import at the data set in its original layout")
    return path


def check_columns(header: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    """Raise DataRefusedError if wanted columns are missing or repeated in the header."""
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataRefusedError(
            f"{path} has no column {', '.join(missing)}, only {', '.join(header)}; import it in its "
            "original layout"
        )
    repeated = sorted({name for name in wanted if header.count(name) > 1})
    if repeated:
        raise DataRefusedError(
            f"{path} names column {', '.join(repeated)} twice; rename one of the two and import again"
        )


def format_value(value: Any) -> str | None:
    """Return a value of json or parquet as text.

    Whole numbers have no point, booleans are spelled as in json, bytes are escaped.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, Decimal):  # of up to 76 digits, over what // takes
        return str(int(value)) if value == value.to_integral_value() else str(value)
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[SourceRecord]:
    """Yield the rows of a parquet file with values as text; missing `optional` columns are left out.

    Raises:
        ConfigError: The path is not a file.
        DamagedInputError: The file is not whole parquet.
        DataRefusedError: A column is missing, repeated, or neither text nor number.
    """
    number = 0
    with translate_read_errors(check_file(path), NOT_PARQUET), BatchFile(path) as file:
        header = file.schema_arrow.names
        check_columns(header, columns, path)
        names = list(dict.fromkeys([*columns, *(name for name in optional if name in header)]))
        _check_types(file.schema_arrow, names, path)
        for batch in read_batches(file, path, names, limits=BatchLimits(READ_ROWS, READ_BYTES)):
            for values in zip(*(_column_values(batch.column(name)) for name in names), strict=True):
                number += 1
                fields = dict(zip(names, map(format_value, values), strict=True))
                is_undecoded = any(isinstance(value, bytes) for value in values)
                yield SourceRecord(number, fields, defect="bad_encoding" if is_undecoded else None)


def _check_types(schema: pa.Schema, names: Sequence[str], path: Path) -> None:
    wrong = {
        name: schema.field(name).type
        for name in names
        if not any(test(_plain_type(schema.field(name).type)) for test in TEXT_TYPES + _SCALARS)
    }
    if wrong:
        shown = ", ".join(f"{name} ({kind})" for name, kind in wrong.items())
        raise DataRefusedError(
            f"{path} has columns that are neither text nor number: {shown}; import it in its original layout"
        )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _column_values(column: pa.Array) -> list[Any]:
    """Return the values of a column; text that is not UTF-8 stays bytes."""
    if not any(test(column.type) for test in TEXT_TYPES):
        return column.to_pylist()
    return [
        None if raw is None else _text_or_bytes(raw) for raw in column.cast(pa.large_binary()).to_pylist()
    ]


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return decode_text(raw, "a value")
    except DamagedInputError:
        return raw
