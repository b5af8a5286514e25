"""Folder of a run's encoded rows, which training reads.

    <run_dir>/cache/encoded/<key>/
        <split>-<task>.arrow    ENCODED_SCHEMA, in the order of `read_split`; not compressed, to be mapped
        tokenizer/              the tokenizer's files, as in a bundle
        manifest.json           SHA-256 of each file; written last

pipeline/encoding/encoded_cache.py builds it.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from models.files import file_sha256
from pipeline.config.splits import Split
from pipeline.config.tasks import Task
from pipeline.encoding.batches import ENCODED_SCHEMA, EncodedRows, RowChunk
from pipeline.errors import DamagedInputError
from pipeline.storage.filesystem import file_stamp, json_sha256, read_json, write_json

FORMAT = 2  # of the folder; change it when older code would misread the folder

MANIFEST = "manifest.json"

CHUNK_ROWS = 16_384  # of a file: a writer holds as many, a reader a kilobyte for each chunk

RETRY_ADVICE = "run the same command, which encodes the rows again"


def encoded_file_name(task_name: str, split: Split) -> str:
    """Return the file name of a task's rows of one split."""
    return f"{split}-{task_name}.arrow"


class EncodedWriter:
    """Writer of one file of encoded rows, in chunks of CHUNK_ROWS rows."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.new_file(path, ENCODED_SCHEMA)
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "EncodedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._write_waiting()
        self._file.close()

    def write(self, table: pa.Table) -> None:
        """Append rows of ENCODED_SCHEMA."""
        self._waiting.append(table)
        if sum(part.num_rows for part in self._waiting) >= CHUNK_ROWS:
            self._write_waiting()

    def _write_waiting(self) -> None:
        # combined, as each chunk has its cost for readers
        rows = pa.concat_tables([ENCODED_SCHEMA.empty_table(), *self._waiting]).combine_chunks()
        self._file.write_table(rows, max_chunksize=CHUNK_ROWS)
        self._waiting = []


def read_encoded(folder: Path, split: Split, tasks: Sequence[Task]) -> EncodedRows:
    """Return the rows of one split in the order of `tasks`, mapped from their files.

    They equal `encode_rows` of `read_split`.

    Raises:
        DamagedInputError: A file is missing or its SHA-256 differs.
        RetryableError: A file changed while it was opened.
    """
    digests = read_manifest(folder)
    chunks: list[RowChunk] = []
    stamps: dict[Path, tuple[int, ...]] = {}
    for index, task in enumerate(tasks):
        name = encoded_file_name(task.name, split)
        if name in digests:
            path = check_file(folder, name, digests, stamps)
            with pa.memory_map(str(path)) as source:  # mapped as long as a chunk views it
                reader = pa.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
                chunks += [RowChunk.from_batch(index, batch) for batch in batches]
    rows = EncodedRows(chunks, stamps)
    rows.check_files()
    return rows


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


def check_file(
    folder: Path, name: str, digests: dict[str, str], stamps: dict[Path, tuple[int, ...]] | None = None
) -> Path:
    """Return the path of a file.

    Args:
        folder: The folder.
        name: Name of the file.
        digests: SHA-256 of each file.
        stamps: Receives the `file_stamp` of before the digest was computed.

    Raises:
        DamagedInputError: The file is missing, or its digest is not the one in the manifest.
    """
    path = folder / name
    if path.is_file() and stamps is not None:
        stamps[path] = file_stamp(path)
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
