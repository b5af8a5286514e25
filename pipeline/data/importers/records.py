"""Lines of a source, and parquet files read as such: a bounded part in memory whatever the size of the file.

A line that cannot be read is given out with its defect, and reading goes on behind it. Text is read in
pipeline/data/importers/text_files.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.importers.text_cleaning import decode_text
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError

READ_ROWS = 4_096  # rows of parquet decoded at once: about 6 MB of product text

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)

_SCALARS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_null,
    pa.types.is_decimal,
)


class Line(NamedTuple):
    """One line of a source: its fields by column, or the defect that left none."""

    # as an editor counts, from 1; a row of parquet: its place, from 1; a record over several lines: its first
    number: int
    fields: Mapping[str, str | None]
    text: str = ""  # as it stands in the source; empty for parquet, whose fields are all there is
    defect: str | None = None  # a reason of pipeline/data/importers/rejects.py


def check_file(path: Path) -> Path:
    """The path of a source. ConfigError if no file lies there."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; point the import at the data set in its original layout")
    return path


def check_columns(found: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    """DataRefusedError naming the columns that are missing or that the file names twice."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataRefusedError(
            f"{path} has no column {', '.join(missing)}, only {', '.join(found)}; import it in its "
            "original layout"
        )
    twice = sorted({name for name in wanted if found.count(name) > 1})
    if twice:
        raise DataRefusedError(
            f"{path} names column {', '.join(twice)} twice; rename one of the two and import again"
        )


def value_text(value: Any) -> str | None:
    """A value of json or parquet as text: whole numbers without a point, truth values as json spells them,
    bytes escaped.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Line]:
    """The rows of a parquet file, values as text; `optional` columns that are absent are null.

    ConfigError: no file. DamagedInputError: not whole parquet. DataRefusedError: a column is missing, named
    twice, or is neither text nor a number.
    """
    number = 0
    try:
        # Buffered and not read ahead: the ESCI original keeps up to a million rows in one row group.
        with pq.ParquetFile(
            check_file(path), page_checksum_verification=True, buffer_size=2**20, pre_buffer=False
        ) as file:
            found = file.schema_arrow.names
            check_columns(found, columns, path)
            names = list(dict.fromkeys([*columns, *(name for name in optional if name in found)]))
            _check_types(file.schema_arrow, names, path)
            for batch in file.iter_batches(READ_ROWS, columns=names):
                for values in zip(*(_column_values(batch.column(name)) for name in names), strict=True):
                    number += 1
                    fields = dict(zip(names, map(value_text, values), strict=True))
                    yield Line(
                        number,
                        fields,
                        "",
                        "bad_encoding" if any(isinstance(v, bytes) for v in values) else None,
                    )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path} is not whole parquet ({error}); download it again") from error


def _check_types(schema: pa.Schema, names: Sequence[str], path: Path) -> None:
    wrong = {
        name: schema.field(name).type
        for name in names
        if not any(test(_plain_type(schema.field(name).type)) for test in _TEXTS + _SCALARS)
    }
    if wrong:
        shown = ", ".join(f"{name} ({kind})" for name, kind in wrong.items())
        raise DataRefusedError(
            f"{path} has columns that are no text: {shown}; import it in its original layout"
        )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _column_values(column: pa.Array) -> list[Any]:
    """The values of a column; what is not UTF-8 stays bytes."""
    kind = _plain_type(column.type)
    if not any(test(kind) for test in _TEXTS):
        return column.cast(kind).to_pylist()
    return [
        None if raw is None else _text_or_bytes(raw)
        for raw in column.cast(kind).cast(pa.large_binary()).to_pylist()
    ]


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return decode_text(raw, "a value")
    except DamagedInputError:
        return raw
