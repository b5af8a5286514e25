"""Tokenised rows of a run, kept as parquet: what training and evaluation read instead of tokenising again.

    <run_dir>/cache/encoded/<key>/
        <side>-<task>.parquet    ENCODED_SCHEMA, in the order of `read_split`
        tokenizer/               the tokenizer's files, as a bundle keeps them
        manifest.json            sha256 of each file; written last
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

FORMAT = 1  # of the folder; changes when an older reader would misread it

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

FACTS = [name for name in ENCODED_SCHEMA.names if name != "ids"]

ENCODE_ANEW = "run the same command again: it encodes the rows anew"


def encoded_name(task_name: str, side: Split) -> str:
    """The file of one task's rows of one side."""
    return f"{side}-{task_name}.parquet"


def read_encoded(folder: Path, side: Split, tasks: Sequence[Task]) -> EncodedRows:
    """The rows of one side, in the order of `tasks`: what `encode_rows` would give for `read_split`.

    Each file's sha256 is checked first. In memory they take the ids, once, and one row group beside them.
    DamagedInputError: a file is absent or altered.
    """
    listed = read_manifest(folder)
    names = {index: encoded_name(task.name, side) for index, task in enumerate(tasks)}
    paths = {index: check_file(folder, name, listed) for index, name in names.items() if name in listed}
    facts = [read_facts(path) for path in paths.values()]
    whole = pa.concat_tables([ENCODED_SCHEMA.empty_table().select(FACTS), *facts])
    starts = np.concatenate([[0], np.cumsum(whole.column("length").to_numpy(), dtype=np.int64)])
    return EncodedRows(
        ids=read_ids(list(paths.values()), int(starts[-1])),
        starts=starts,
        task_N=np.repeat(np.asarray(list(paths), np.int64), [table.num_rows for table in facts]),
        label_N=whole.column("label").to_numpy().astype(np.int64),
        weight_N=whole.column("weight").to_numpy(),
        row_id_N=whole.column("row_id"),
        query_N=whole.column("query"),
    )


def read_facts(path: Path) -> pa.Table:
    """All but the ids."""
    with pq.ParquetFile(path, memory_map=True) as file:
        return file.read(columns=FACTS)


def read_ids(paths: Sequence[Path], num_tokens: int) -> np.ndarray:
    """Token ids of all rows end to end, int32."""
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
    """List every file of a finished folder."""
    files = {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST, {"files": files, "sha256": json_sha256(files)})


def read_manifest(folder: Path) -> dict[str, str]:
    """sha256 of each file by name; DamagedInputError if there is no whole manifest."""
    try:
        manifest = read_json(folder / MANIFEST)
        if json_sha256(manifest["files"]) == manifest["sha256"]:
            return dict(manifest["files"])
    except (OSError, TypeError, KeyError) as error:
        raise DamagedInputError(f"{folder} holds no whole {MANIFEST} ({error}); {ENCODE_ANEW}") from error
    raise DamagedInputError(f"{folder / MANIFEST} was altered; {ENCODE_ANEW}")


def check_file(folder: Path, name: str, listed: dict[str, str]) -> Path:
    """The file's path; DamagedInputError if it is absent or other bytes than the manifest lists."""
    path = folder / name
    if not path.is_file() or file_sha256(path) != listed[name]:
        raise DamagedInputError(f"{path} is absent or damaged; {ENCODE_ANEW}")
    return path


def is_whole(folder: Path) -> bool:
    """Whether a folder is there with every file as it was written."""
    try:
        listed = read_manifest(folder)
        for name in listed:
            check_file(folder, name, listed)
    except DamagedInputError:
        return False
    return True
