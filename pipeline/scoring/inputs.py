"""Input files of a scoring run, in a folder or a bucket.

A file that changes after the run was planned is refused.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.tasks import Task
from pipeline.data.catalog import logical_name
from pipeline.data.data_files import PREFIX
from pipeline.data.parquet_batches import BatchFile, translate_read_errors
from pipeline.data.reader import find_partitions, open_partition
from pipeline.data.row_files import RowFile, copy_object, find_objects
from pipeline.errors import DamagedInputError, RelevanceError, RetryableError
from pipeline.names import is_bucket
from pipeline.scoring.input_cache import InputCache
from pipeline.storage.filesystem import cached_sha256, file_stamp

CONCURRENT_FOOTERS = 16  # a bucket answers them as fast as one


# versions of objects that this process has found to be what a catalogue lists
_compared: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class InputFile:
    """One file of a task."""

    path: str  # path or URL
    name: str  # path below the location of all inputs, as `logical_name` gives it
    digest: str  # of the content: a sha256, or version and size in a bucket
    listed_sha256: str = ""  # of an object that a catalogue lists, to be compared when its rows are read
    num_rows: int | None = None  # None: not known from an earlier plan


def find_inputs(location: Path | str, tasks: Sequence[Task], cache: InputCache) -> dict[str, list[InputFile]]:
    """Return the files of each task, sorted.

    Raises:
        ConfigError: The folder is missing, or holds a task that is not configured.
        DataRefusedError: There is no file, or one that the catalogue of the location does not list.
        DamagedInputError: A folder is named like a parquet file, or a file is not as the catalogue lists it.
    """
    if is_bucket(location):
        found = {
            task: [
                InputFile(
                    file.url, logical_name(file.name), f"{file.version} {file.size}", file.listed_sha256
                )
                for file in files
            ]
            for task, files in find_objects(str(location), tasks).by_task.items()
        }
    else:
        root = Path(location)
        found = {
            task: [
                InputFile(str(path), logical_name(str(path.relative_to(root))), cache.sha256(path))
                for path in paths
            ]
            for task, paths in find_partitions(root, tasks, cache.sha256).items()
        }
    return {
        task: [replace(file, num_rows=cache.num_rows(file.path, file.digest)) for file in files]
        for task, files in found.items()
    }


def count_rows(files: Sequence[InputFile]) -> list[int]:
    """Return the number of rows of each file, by its footer if it is new; 0 for files that cannot be read.

    An unreadable file becomes a unit of its own, which fails when it is scored; the others are scored.
    """
    with ThreadPoolExecutor(CONCURRENT_FOOTERS) as pool:
        return list(
            pool.map(lambda file: _count_file_rows(file) if file.num_rows is None else file.num_rows, files)
        )


@contextlib.contextmanager
def open_input(path: str, digest: str, listed_sha256: str = "") -> Iterator[BatchFile]:
    """Open an input file of a known digest.

    Args:
        path: Path or URL.
        digest: See `InputFile`.
        listed_sha256: If given, an object that this process has not compared yet is downloaded whole,
            and read from that copy; else only what is read is downloaded.

    Raises:
        RetryableError: The file changed, before it was opened or while it was open.
        DamagedInputError: The file is not complete parquet, or not what the catalogue lists.
    """
    if is_bucket(path):
        with _open_object(path, digest, listed_sha256) as file:
            yield file
        return
    local = Path(path)
    if not local.is_file() or cached_sha256(local) != digest:
        raise input_changed(path)
    before = file_stamp(local)
    try:
        with open_partition(local) as file:
            yield file
    except RelevanceError as error:  # half of a new file is like a damaged one
        if _is_changed(local, before):
            raise input_changed(path) from error
        raise
    if _is_changed(local, before):
        raise input_changed(path)


def _is_changed(path: Path, stamp: tuple[int, ...]) -> bool:
    return not path.is_file() or file_stamp(path) != stamp


def input_changed(path: str) -> RetryableError:
    """Return the error for a file that differs from the planned one."""
    return RetryableError(
        f"input changed while it was scored: {path}; nothing of it was published, run the same command again"
    )


def _count_file_rows(file: InputFile) -> int:
    try:
        with open_input(file.path, file.digest) as opened:
            return int(opened.metadata.num_rows)
    except DamagedInputError:
        return 0


@contextlib.contextmanager
def _open_object(url: str, digest: str, listed_sha256: str) -> Iterator[BatchFile]:
    """Open one version of an object; every request names the version."""
    location, _, key = url.rpartition(f"/{PREFIX}")
    version, _, size = digest.rpartition(" ")
    file = RowFile(location, PREFIX + key, version, int(size), listed_sha256)
    source: Any = file.open_object()
    with contextlib.ExitStack() as stack:
        if listed_sha256 and (url, digest, listed_sha256) not in _compared:
            copy = stack.enter_context(tempfile.TemporaryFile())
            copy_object(file, copy)
            copy.seek(0)
            _compared.add((url, digest, listed_sha256))
            source = copy
        with translate_read_errors(url):
            opened = BatchFile(source, pre_buffer=True)
        with opened:
            yield opened
