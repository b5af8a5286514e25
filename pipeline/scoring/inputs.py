"""The files a scoring run takes its rows from, in a folder or a bucket, and that each stays what it was when
the run was planned.
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
from pipeline.data.reader import find_partitions, naming_damage, open_partition
from pipeline.errors import DamagedInputError, DataRefusedError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.object_store import Bucket, Entry, StoredFile, open_bucket

PREFIX, SUFFIX = "task=", ".parquet"

FOOTERS = 8  # that are read at a time


@dataclass(frozen=True)
class InputFile:
    """One file of a task."""

    path: str  # where it is
    name: str  # the same, below the place of all inputs
    digest: str  # of its content: a sha256, or what a bucket knows it by


def find_inputs(place: Path | str, tasks: Sequence[Task]) -> dict[str, list[InputFile]]:
    """The files of each task, sorted. Errors: those of `find_partitions`, and the store's."""
    if is_bucket(place):
        return find_objects(open_bucket(str(place)), tasks)
    root = Path(place)
    found = find_partitions(root, tasks)
    return {
        task: [
            InputFile(str(path), str(path.relative_to(root)), sha256_of(path, state_of(path)))
            for path in paths
        ]
        for task, paths in found.items()
    }


def find_objects(bucket: Bucket, tasks: Sequence[Task]) -> dict[str, list[InputFile]]:
    """The same of a bucket: task=<name>/*.parquet below its prefix."""
    found: dict[str, list[InputFile]] = {}
    for entry in bucket.list(""):
        folder, _, name = entry.key.rpartition("/")
        if folder.startswith(PREFIX) and "/" not in folder and name.endswith(SUFFIX) and not entry.hidden:
            task = check_known_task(folder.removeprefix(PREFIX), tasks, bucket.place).name
            found.setdefault(task, []).append(
                InputFile(f"{bucket.place}/{entry.key}", entry.key, f"{entry.version} {entry.size}")
            )
    if not found:
        raise DataRefusedError(
            f"{bucket.place} holds no task=<name>/*.parquet; upload rows that `relevance import` or "
            "`relevance sample` wrote"
        )
    return found


def count_rows(files: Sequence[InputFile]) -> list[int]:
    """Rows of each file by its footer, several files at a time: a bucket takes as long to answer for one as
    for ten.
    """
    with ThreadPoolExecutor(FOOTERS) as pool:
        return list(pool.map(rows_of, files))


def rows_of(file: InputFile) -> int:
    """Rows of a file; 0 where it cannot be read, which is told where its unit is scored, so that the others
    are scored all the same.
    """
    try:
        with open_input(file.path, file.digest) as opened:
            return int(opened.metadata.num_rows)
    except DamagedInputError:
        return 0


@contextlib.contextmanager
def open_input(path: str, digest: str) -> Iterator[pq.ParquetFile]:
    """The open file. RetryableError: it is another than it was, before it is opened or before it is closed.
    DamagedInputError: not whole parquet.
    """
    if is_bucket(path):
        with open_object(path, digest) as file:
            yield file
        return
    here = Path(path)
    before = state_of(here)
    if before is None or sha256_of(here, before) != digest:
        raise changed(path)
    with open_partition(here) as file:
        yield file
    if state_of(here) != before:
        raise changed(path)


@contextlib.contextmanager
def open_object(url: str, digest: str) -> Iterator[pq.ParquetFile]:
    """The same in a bucket, which is asked for this very version each time."""
    place, _, key = url.rpartition(f"/{PREFIX}")  # as it was listed
    version, _, size = digest.rpartition(" ")
    source = StoredFile(open_bucket(place), Entry(PREFIX + key, 0.0, int(size), version))
    with naming_damage(url):
        file = pq.ParquetFile(source, page_checksum_verification=True)
    with file:
        yield file


def changed(path: str) -> RetryableError:
    """Of a file that is no longer what was planned."""
    return RetryableError(
        f"{path} changed while it was scored; nothing of it is published, run the same command again"
    )


def state_of(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None where there is no file."""
    if not path.is_file():
        return None
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=10_000)
def sha256_of(path: Path, state: tuple[int, ...] | None) -> str:
    """The file's sha256, found once in a process for all its units."""
    return file_sha256(path)
