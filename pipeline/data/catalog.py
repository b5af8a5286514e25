"""What lies in a data folder: catalogue.json, written last, and a digest of rows that does not depend on how
they are stored.
"""

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

LOCK_TIMEOUT_S = 60  # others hold the lock while they move and hash files that are written already

DIGEST_ROWS = 16_384  # rows hashed at once

_LANES = 4  # a row's hash is 4 numbers of 64 bits


@dataclass(frozen=True)
class Partition:
    """One parquet file of a data folder, as the import that wrote it described it."""

    path: str  # below the data folder
    task: str
    rows: int
    bytes: int
    sha256: str
    schema_version: str


def describe_partition(root: Path, path: Path) -> Partition:
    """The catalogue's entry of the file `path` below `root`."""
    with pq.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
    task = path.parent.name.removeprefix("task=")
    return Partition(
        str(path.relative_to(root)), task, num_rows, path.stat().st_size, file_sha256(path), SCHEMA_VERSION
    )


def read_catalogue(root: Path) -> list[Partition]:
    """The partitions that imports wrote into the data folder `root`; empty where there is no catalogue.
    DamagedInputError: it is none.
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
    """Enter the partitions just written; entries of files that are gone leave, all others stay. The caller
    holds `catalogue_lock`.
    """
    kept = {p.path: p for p in read_catalogue(root) if (root / p.path).is_file()}
    entries = kept | {p.path: p for p in written}
    write_json(root / CATALOGUE, {"partitions": [asdict(entries[path]) for path in sorted(entries)]})


def enter_partitions(root: Path, paths: Sequence[Path]) -> None:
    """Enter files that already lie below the data folder `root` into its catalogue."""
    with catalogue_lock(root):
        update_catalogue(root, [describe_partition(root, path) for path in paths])


@contextlib.contextmanager
def catalogue_lock(root: Path) -> Iterator[None]:
    """One import at a time moves files into `root`. RetryableError: another holds it for too long."""
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
    """Hex sha256 of the rows in a parquet file, or in the task=<name>/*.parquet of a folder.

    It moves when a value, a row's number of occurrences or a row's task moves; not with compression, row
    groups, the cut into files, the order of rows or columns, or a column that is null everywhere. Per row
    blake2b of 256 bits over its non-null values, added up in 64-bit lanes; memory holds DIGEST_ROWS rows.
    Made against accidents, not against someone who searches for a collision. DamagedInputError: not whole
    parquet. DataRefusedError: a column is neither text nor number.
    """
    files = sorted(path.glob("task=*/*.parquet")) if path.is_dir() else [path]
    sums: dict[str, np.ndarray] = {}
    for file in files:
        task = file.parent.name if path.is_dir() else ""
        sums[task] = sums.get(task, np.zeros(_LANES + 1, np.uint64)) + _content_sum(file)
    return json_sha256({task: sum_L.tolist() for task, sum_L in sums.items() if sum_L.any()})


def _content_sum(path: Path) -> np.ndarray:
    """Number of rows and sum of the rows' hashes, modulo 2^64 in each lane (lanes + 1,)."""
    total_L = np.zeros(_LANES + 1, np.uint64)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            for batch in file.iter_batches(DIGEST_ROWS):
                rows = _spelled_rows(batch, path)
                digests = b"".join(
                    [hashlib.blake2b(row, digest_size=8 * _LANES).digest() for row in rows.to_pylist()]
                )
                total_L[0] += np.uint64(len(rows))
                total_L[1:] += np.frombuffer(digests, "<u8").reshape(-1, _LANES).sum(axis=0, dtype=np.uint64)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(
            f"{path} is not whole parquet ({error}); write it again from its source"
        ) from error
    return total_L


def _spelled_rows(batch: pa.RecordBatch, path: Path) -> pa.Array:
    """Each row as bytes that no other row has: name, length and value of what is not null, columns by
    name.
    """
    kind = pa.large_binary()
    parts = []
    for name in sorted(batch.schema.names):
        values = _spelled_values(batch.column(name), f"column {name} of {path}")
        length = pc.binary_length(values).cast(pa.large_string()).cast(kind)
        spelled = pc.binary_join_element_wise(
            pa.scalar(name.encode(), kind), length, values, pa.scalar(b"\0", kind)
        )
        parts.append(pc.fill_null(spelled, pa.scalar(b"", kind)))
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", kind))


def _spelled_values(values: pa.Array, where: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        # bit by bit: text of floats is not the same everywhere
        values = values.cast(pa.float64()).view(pa.int64())
    if pa.types.is_integer(values.type):
        values = values.cast(pa.large_string())
    try:
        return values.cast(pa.large_binary())
    except pa.ArrowNotImplementedError as error:
        raise DataRefusedError(
            f"{where} is {values.type}, neither text nor number; the digest is of contract rows"
        ) from error
