"""Input files of a scoring run, in a folder or a bucket.

A file that changes after the run was planned is refused.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from models.files import file_sha256
from pipeline.config.tasks import Task, check_known_task
from pipeline.data.reader import find_partitions, open_partition, translate_read_errors
from pipeline.errors import DamagedInputError, DataRefusedError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.object_store import Bucket, BucketFile, StoreEntry, open_bucket

PREFIX, SUFFIX = "task=", ".parquet"

CONCURRENT_FOOTERS = 8  # a bucket answers ten requests as fast as one


@dataclass(frozen=True)
class InputFile:
    """One file of a task."""

    path: str  # path or URL
    name: str  # path below the location of all inputs
    digest: str  # of the content: a sha256, or version and size in a bucket


def find_inputs(location: Path | str, tasks: Sequence[Task]) -> dict[str, list[InputFile]]:
    """Return the files of each task, sorted.

    Raises:
        ConfigError: The folder is missing, or holds a task that is not configured.
        DataRefusedError: There is no file.
        DamagedInputError: A folder is named like a parquet file.
    """
    if is_bucket(location):
        return _find_objects(open_bucket(str(location)), tasks)
    root = Path(location)
    return {
        task: [
            InputFile(str(path), str(path.relative_to(root)), _cached_sha256(path, _file_state(path)))
            for path in paths
        ]
        for task, paths in find_partitions(root, tasks).items()
    }


def count_rows(files: Sequence[InputFile]) -> list[int]:
    """Return the number of rows of each file by its footer; 0 for files that cannot be read.

    An unreadable file becomes a unit of its own, which fails when it is scored; the others are scored.
    """
    with ThreadPoolExecutor(CONCURRENT_FOOTERS) as pool:
        return list(pool.map(_count_file_rows, files))


@contextlib.contextmanager
def open_input(path: str, digest: str) -> Iterator[pq.ParquetFile]:
    """Open an input file of a known digest.

    Raises:
        RetryableError: The file changed, before it was opened or while it was open.
        DamagedInputError: The file is not complete parquet.
    """
    if is_bucket(path):
        with _open_object(path, digest) as file:
            yield file
        return
    local = Path(path)
    before = _file_state(local)
    if before is None or _cached_sha256(local, before) != digest:
        raise input_changed(path)
    with open_partition(local) as file:
        yield file
    if _file_state(local) != before:
        raise input_changed(path)


def input_changed(path: str) -> RetryableError:
    """Return the error for a file that differs from the planned one."""
    return RetryableError(
        f"input changed while it was scored: {path}; nothing of it was published, run the same command again"
    )


def _find_objects(bucket: Bucket, tasks: Sequence[Task]) -> dict[str, list[InputFile]]:
    """Return the objects task=<name>/*.parquet below a bucket's prefix, by task."""
    files: dict[str, list[InputFile]] = {}
    for entry in bucket.list(""):
        folder, _, name = entry.key.rpartition("/")
        is_task_folder = folder.startswith(PREFIX) and "/" not in folder
        if is_task_folder and name.endswith(SUFFIX) and not entry.is_hidden:
            task = check_known_task(folder.removeprefix(PREFIX), tasks, bucket.location).name
            url, digest = f"{bucket.location}/{entry.key}", f"{entry.version} {entry.size}"
            files.setdefault(task, []).append(InputFile(url, entry.key, digest))
    if not files:
        raise DataRefusedError(
            f"{bucket.location} holds no task=<name>/*.parquet; upload rows that `relevance import` or "
            "`relevance sample` wrote"
        )
    return files


def _count_file_rows(file: InputFile) -> int:
    try:
        with open_input(file.path, file.digest) as opened:
            return int(opened.metadata.num_rows)
    except DamagedInputError:
        return 0


@contextlib.contextmanager
def _open_object(url: str, digest: str) -> Iterator[pq.ParquetFile]:
    """Open one version of an object; every request names the version."""
    location, _, key = url.rpartition(f"/{PREFIX}")
    version, _, size = digest.rpartition(" ")
    source = BucketFile(open_bucket(location), StoreEntry(PREFIX + key, 0.0, int(size), version))
    with translate_read_errors(url):
        file = pq.ParquetFile(source, page_checksum_verification=True)
    with file:
        yield file


def _file_state(path: Path) -> tuple[int, ...] | None:
    """Return values that change when a file is written or replaced; None if there is no file."""
    if not path.is_file():
        return None
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=10_000)
def _cached_sha256(path: Path, state: tuple[int, ...] | None) -> str:
    """Return the file's sha256, computed once per process and state."""
    return file_sha256(path)
