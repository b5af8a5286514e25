"""Catalogue of a data folder (catalogue.json, written last), and a storage-independent digest of rows."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.files import file_sha256
from pipeline.errors import DamagedInputError, DataRefusedError, RetryableError
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.filesystem import json_sha256, read_json, write_json

CATALOGUE = "catalogue.json"

LOCK_TIMEOUT_S = 60  # a holder only moves and hashes files that are already written

DIGEST_ROWS = 16_384  # rows hashed at a time

_LANES = 4  # 64-bit numbers in the hash of a row


@dataclass(frozen=True)
class Partition:
    """Catalogue entry of one parquet file in a data folder."""

    path: str  # relative to the data folder
    task: str
    rows: int
    bytes: int
    sha256: str
    schema_version: str


def describe_partition(root: Path, path: Path) -> Partition:
    """Return the catalogue entry of the file `path` below `root`."""
    with pq.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
    task = path.parent.name.removeprefix("task=")
    return Partition(
        path=str(path.relative_to(root)),
        task=task,
        rows=num_rows,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        schema_version=SCHEMA_VERSION,
    )


def read_catalogue(root: Path) -> list[Partition]:
    """Return the partitions that imports wrote into the data folder `root`; empty without a catalogue.

    Raises:
        DamagedInputError: The file is not a catalogue.
    """
    path = root / CATALOGUE
    if not path.exists():
        return []
    try:
        return [Partition(**entry) for entry in read_json(path)["partitions"]]
    except (TypeError, KeyError) as error:
        raise DamagedInputError(
            f"{path} is not a catalogue of partitions ({error}); delete it and import again"
        ) from error


def update_catalogue(root: Path, written: Sequence[Partition]) -> None:
    """Add the partitions just written and drop the entries of files that do not exist.

    The caller holds `catalogue_lock`.
    """
    kept = {entry.path: entry for entry in read_catalogue(root) if (root / entry.path).is_file()}
    entries = kept | {entry.path: entry for entry in written}
    write_json(root / CATALOGUE, {"partitions": [asdict(entries[path]) for path in sorted(entries)]})


def add_partitions(root: Path, paths: Sequence[Path]) -> None:
    """Add files that exist below the data folder `root` to its catalogue."""
    with catalogue_lock(root):
        update_catalogue(root, [describe_partition(root, path) for path in paths])


@contextlib.contextmanager
def catalogue_lock(root: Path) -> Iterator[None]:
    """Let one import at a time move files into `root`.

    Raises:
        RetryableError: Another import holds the lock for LOCK_TIMEOUT_S.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / f".{CATALOGUE}.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise RetryableError(
            f"another import is writing into {root}; wait for it and run the same command again"
        ) from error


def content_digest(path: Path) -> str:
    """Return a hex sha256 of the rows in a parquet file, or in the task=<name>/*.parquet of a folder.

    - It changes with a value, with the number of times a row occurs, and with the task of a row.
    - It does not change with compression, row groups, the number of files, the order of rows or columns, or a
      column that is null everywhere.

    Each row has a 256-bit blake2b of its non-null values; these are added up in 64-bit lanes. Memory holds
    DIGEST_ROWS rows. The digest detects accidents; it does not resist a search for collisions.

    Raises:
        DamagedInputError: A file is not whole parquet.
        DataRefusedError: A column is neither text nor number.
    """
    files = sorted(path.glob("task=*/*.parquet")) if path.is_dir() else [path]
    sums: dict[str, np.ndarray] = {}
    for file in files:
        task = file.parent.name if path.is_dir() else ""
        sums[task] = sums.get(task, np.zeros(_LANES + 1, np.uint64)) + _sum_row_hashes(file)
    return json_sha256({task: sum_L.tolist() for task, sum_L in sums.items() if sum_L.any()})


def _sum_row_hashes(path: Path) -> np.ndarray:
    """Return the number of rows and the sum of their hashes, modulo 2^64 in each lane (lanes + 1,)."""
    total_L = np.zeros(_LANES + 1, np.uint64)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            for batch in file.iter_batches(DIGEST_ROWS):
                rows = _encode_rows(batch, path)
                digests = b"".join(
                    [hashlib.blake2b(row, digest_size=8 * _LANES).digest() for row in rows.to_pylist()]
                )
                hashes_NL = np.frombuffer(digests, "<u8").reshape(-1, _LANES)
                total_L[0] += np.uint64(len(rows))
                total_L[1:] += hashes_NL.sum(axis=0, dtype=np.uint64)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(
            f"{path} is not whole parquet ({error}); write it again from its source"
        ) from error
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
