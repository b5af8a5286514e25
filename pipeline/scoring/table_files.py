"""Parquet and csv files for people and other programs, written in batches; no reader sees half of one."""

import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from models.files import atomic_writer
from pipeline.errors import ConfigError
from pipeline.names import is_bucket

SUFFIXES = (".parquet", ".csv", ".csv.gz")


def check_new_file(path: Path) -> None:
    """Check that a file can be written, before the work for it begins.

    Raises:
        ConfigError: It exists already, is no local file, or has another suffix than those of SUFFIXES.
    """
    if is_bucket(path) or str(path).startswith("s3:/"):  # Path drops a slash
        raise ConfigError(f"file is not local: {path}; name a path on this machine, and copy it from there")
    if not path.name.endswith(SUFFIXES) or path.name.startswith("."):
        raise ConfigError(f"kind of file unknown: {path}; name one that ends in {', '.join(SUFFIXES)}")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already; remove it or name another file")


@contextlib.contextmanager
def open_table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Open a file by its suffix; it has its name when the context ends without an error.

    Csv is UTF-8; every text is in quotes, null is an empty field without them, and bytes are hex digits.

    Yields:
        A function that appends a table of the schema.
    """
    with atomic_writer(path) as file:
        if path.name.endswith(".parquet"):
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                yield writer.write_table
        elif path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed, _csv_writer(packed, schema) as write:
                yield write
        else:
            with _csv_writer(file, schema) as write:
                yield write


@contextlib.contextmanager
def _csv_writer(file: IO[bytes] | gzip.GzipFile, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    shown = pa.schema(
        field.with_type(pa.string()) if pa.types.is_fixed_size_binary(field.type) else field
        for field in schema
    )
    with pyarrow.csv.CSVWriter(file, shown) as writer:
        yield lambda table: writer.write_table(_bytes_as_hex(table).cast(shown))


def _bytes_as_hex(table: pa.Table) -> pa.Table:
    for number, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            texts = [None if value is None else value.hex() for value in table.column(number).to_pylist()]
            table = table.set_column(number, field.with_type(pa.string()), pa.array(texts, pa.string()))
    return table
