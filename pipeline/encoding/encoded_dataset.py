"""Folder of a run's encoded rows, which training and evaluation read.

    <run_dir>/cache/encoded/<key>/
        <split>-<task>.parquet    ENCODED_SCHEMA, in the order of `read_split`
        tokenizer/                the tokenizer's files, as in a bundle
        manifest.json             SHA-256 of each file; written last

pipeline/encoding/encoded_cache.py builds it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.files import file_sha256
from pipeline.config.splits import Split
from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows
from pipeline.errors import DamagedInputError
from pipeline.storage.filesystem import json_sha256, read_json, write_json

FORMAT = 1  # of the folder; change it when older code would misread the folder

MANIFEST = "manifest.json"

ENCODED_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("query", pa.string(), False),
        pa.field("ids", pa.list_(pa.int32()), False),
        pa.field("length", pa.int32(), False),
        pa.field("label", pa.int32(), False),
        pa.field("weight", pa.float32(), False),
    ]
)

NON_ID_COLUMNS = [name for name in ENCODED_SCHEMA.names if name != "ids"]

RETRY_ADVICE = "run the same command, which encodes the rows again"


def encoded_file_name(task_name: str, split: Split) -> str:
    """Return the file name of a task's rows of one split."""
    return f"{split}-{task_name}.parquet"


def read_encoded(folder: Path, split: Split, tasks: Sequence[Task]) -> EncodedRows:
    """Return the rows of one split in the order of `tasks`.

    They equal `encode_rows` of `read_split`. The memory peak is the ids and one row group.

    Raises:
        DamagedInputError: A file is missing or its SHA-256 differs.
    """
    digests = read_manifest(folder)
    names = {index: encoded_file_name(task.name, split) for index, task in enumerate(tasks)}
    paths = {index: check_file(folder, name, digests) for index, name in names.items() if name in digests}
    tables = [_read_without_ids(path) for path in paths.values()]
    all_rows = pa.concat_tables([ENCODED_SCHEMA.empty_table().select(NON_ID_COLUMNS), *tables])
    starts = np.concatenate([[0], np.cumsum(all_rows.column("length").to_numpy(), dtype=np.int64)])
    return EncodedRows(
        ids=_read_ids(list(paths.values()), int(starts[-1])),
        starts=starts,
        task_N=np.repeat(np.asarray(list(paths), np.int64), [table.num_rows for table in tables]),
        label_N=all_rows.column("label").to_numpy().astype(np.int64),
        weight_N=all_rows.column("weight").to_numpy(),
        row_id_N=all_rows.column("row_id"),
        query_N=all_rows.column("query"),
    )


def _read_without_ids(path: Path) -> pa.Table:
    with pq.ParquetFile(path, memory_map=True) as file:
        return file.read(columns=NON_ID_COLUMNS)


def _read_ids(paths: Sequence[Path], num_tokens: int) -> np.ndarray:
    """Return the token ids of all rows concatenated, int32, one row group in memory at a time."""
    ids = np.empty(num_tokens, np.int32)
    position = 0
    for path in paths:
        with pq.ParquetFile(path, memory_map=True) as file:
            for index in range(file.num_row_groups):
                for chunk in file.read_row_group(index, columns=["ids"]).column("ids").chunks:
                    flat = chunk.flatten().to_numpy()
                    ids[position : position + len(flat)] = flat
                    position += len(flat)
    return ids


def write_manifest(folder: Path) -> None:
    """Write the digest of every file of a finished folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {str(path.relative_to(folder)): file_sha256(path) for path in paths}
    write_json(folder / MANIFEST, {"files": digests, "sha256": json_sha256(digests)})


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by name.

    Raises:
        DamagedInputError: The manifest is missing, incomplete or altered.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        if json_sha256(manifest["files"]) == manifest["sha256"]:
            return dict(manifest["files"])
    except (OSError, TypeError, KeyError) as error:
        raise DamagedInputError(
            f"{MANIFEST} of {folder} is missing or incomplete ({error}); {RETRY_ADVICE}"
        ) from error
    raise DamagedInputError(f"{folder / MANIFEST} is altered; {RETRY_ADVICE}")


def check_file(folder: Path, name: str, digests: dict[str, str]) -> Path:
    """Return the path of a file.

    Raises:
        DamagedInputError: The file is missing, or its digest is not the one in the manifest.
    """
    path = folder / name
    if not path.is_file() or file_sha256(path) != digests[name]:
        raise DamagedInputError(f"{path} is missing or damaged; {RETRY_ADVICE}")
    return path


def is_intact(folder: Path) -> bool:
    """Return True if the folder exists and every file has the digest in the manifest."""
    try:
        digests = read_manifest(folder)
        for name in digests:
            check_file(folder, name, digests)
    except DamagedInputError:
        return False
    return True
