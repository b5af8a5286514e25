"""Digest of rows that does not depend on how they are stored."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.data_files import scan_folder
from pipeline.data.parquet_batches import (
    NOT_PARQUET,
    BatchFile,
    BatchLimits,
    read_batches,
    translate_read_errors,
)
from pipeline.errors import DataRefusedError
from pipeline.storage.filesystem import json_sha256

DIGEST_ROWS = 16_384  # rows hashed at a time

_LANES = 4  # 64-bit numbers in the hash of a row


def content_digest(path: Path) -> str:
    """Return a hex sha256 of the rows in a parquet file, or in the files of a data folder.

    - It changes with a value, with the number of times a row occurs, and with the task of a row.
    - It does not change with compression, row groups, the number of files, the order of rows or columns, or a
      column that is null everywhere.

    Each row has a 256-bit blake2b of its non-null values; these are added up in 64-bit lanes. Memory holds
    DIGEST_ROWS rows. The digest detects accidents; it does not resist a search for collisions.

    Raises:
        DamagedInputError: A file is not whole parquet.
        DataRefusedError: A column is neither text nor number.
    """
    files = {"": [path]}
    if path.is_dir():
        by_task = scan_folder(path).by_task
        files = {f"task={task}": [path / name for name in names] for task, names in by_task.items()}
    sums = {task: np.zeros(_LANES + 1, np.uint64) for task in files}
    for task, paths in files.items():
        for file in paths:
            sums[task] += _sum_row_hashes(file)
    return json_sha256({task: sum_L.tolist() for task, sum_L in sums.items() if sum_L.any()})


def _sum_row_hashes(path: Path) -> np.ndarray:
    """Return the number of rows and the sum of their hashes, modulo 2^64 in each lane (lanes + 1,)."""
    total_L = np.zeros(_LANES + 1, np.uint64)
    with translate_read_errors(path, NOT_PARQUET), BatchFile(path) as file:
        for batch in read_batches(file, path, limits=BatchLimits(DIGEST_ROWS)):
            rows = _encode_rows(batch, path)
            digests = b"".join(
                [hashlib.blake2b(row, digest_size=8 * _LANES).digest() for row in rows.to_pylist()]
            )
            hashes_NL = np.frombuffer(digests, "<u8").reshape(-1, _LANES)
            total_L[0] += np.uint64(len(rows))
            total_L[1:] += hashes_NL.sum(axis=0, dtype=np.uint64)
    return total_L


def _encode_rows(batch: pa.RecordBatch, path: Path) -> pa.Array:
    """Encode each row as unique bytes: name, length and value of its non-null columns, sorted by name."""
    kind = pa.large_binary()
    parts = []
    for name in sorted(batch.schema.names):
        values = _encode_values(batch.column(name), f"column {name} of {path}")
        length = pc.binary_length(values).cast(pa.large_string()).cast(kind)
        encoded = pc.binary_join_element_wise(
            pa.scalar(name.encode(), kind), length, values, pa.scalar(b"\0", kind)
        )
        parts.append(pc.fill_null(encoded, pa.scalar(b"", kind)))
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", kind))


def _encode_values(values: pa.Array, where: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        # as bits: the text of a float differs between platforms
        values = values.cast(pa.float64()).view(pa.int64())
    if pa.types.is_integer(values.type):
        values = values.cast(pa.large_string())
    try:
        return values.cast(pa.large_binary())
    except pa.ArrowNotImplementedError as error:
        raise DataRefusedError(
            f"{where} is {values.type}, neither text nor number; only contract rows have a digest"
        ) from error
