"""Input files of a scoring run, in a folder or a bucket.

A file that changes after the run was planned is refused.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config.tasks import Task, check_known_task
from pipeline.data.catalog import Partition, check_names, content_differs, logical_name, parse_catalogue
from pipeline.data.data_files import CATALOGUE, PREFIX, sort_names
from pipeline.data.parquet_batches import BatchFile, translate_read_errors
from pipeline.data.reader import find_partitions, log_once, no_rows_message, open_partition
from pipeline.errors import DamagedInputError, DataRefusedError, RelevanceError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.filesystem import cached_sha256, file_stamp
from pipeline.storage.object_store import MAX_RANGE_BYTES, Bucket, BucketFile, StoreEntry, open_bucket

CONCURRENT_FOOTERS = 8  # a bucket answers ten requests as fast as one


# versions of objects that this process has found to be what a catalogue lists
_compared: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class InputFile:
    """One file of a task."""

    path: str  # path or URL
    name: str  # path below the location of all inputs, as `logical_name` gives it
    digest: str  # of the content: a sha256, or version and size in a bucket
    listed_sha256: str = ""  # of an object that a catalogue lists, to be compared when its rows are read


def find_inputs(location: Path | str, tasks: Sequence[Task]) -> dict[str, list[InputFile]]:
    """Return the files of each task, sorted.

    Raises:
        ConfigError: The folder is missing, or holds a task that is not configured.
        DataRefusedError: There is no file, or one that the catalogue of the location does not list.
        DamagedInputError: A folder is named like a parquet file, or a file is not as the catalogue lists it.
    """
    if is_bucket(location):
        return _find_objects(open_bucket(str(location)), tasks)
    root = Path(location)
    return {
        task: [
            InputFile(str(path), logical_name(str(path.relative_to(root))), cached_sha256(path))
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


def _find_objects(bucket: Bucket, tasks: Sequence[Task]) -> dict[str, list[InputFile]]:
    """Return the parquet objects of each task below a bucket's prefix.

    Names and sizes are compared with the catalogue; contents when they are read, see `open_input`.
    """
    listed: dict[str, Partition] = {}
    entries = {entry.key: entry for entry in bucket.list("")}
    found = sort_names(entries, is_parquet=lambda key: False)
    if CATALOGUE in entries:
        listed = parse_catalogue(bucket.get(CATALOGUE), f"{bucket.location}/{CATALOGUE}")
        sizes = {key: entries[key].size for key in found.names}
        if error := check_names(listed, sizes, bucket.location):
            raise error
    skipped = found.describe_skipped(bucket.location)
    log_once(skipped)
    if not found.by_task:
        raise DataRefusedError(no_rows_message(bucket.location, skipped))
    return {
        check_known_task(task, tasks, bucket.location).name: [
            InputFile(
                f"{bucket.location}/{key}",
                logical_name(key),
                f"{entries[key].version} {entries[key].size}",
                listed[key].sha256 if key in listed else "",
            )
            for key in keys
        ]
        for task, keys in found.by_task.items()
    }


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
    source: Any = BucketFile(open_bucket(location), StoreEntry(PREFIX + key, 0.0, int(size), version))
    with contextlib.ExitStack() as stack:
        if listed_sha256 and (url, digest, listed_sha256) not in _compared:
            copy = stack.enter_context(tempfile.TemporaryFile())
            if _copy(source, copy) != listed_sha256:
                raise content_differs([PREFIX + key], location)
            _compared.add((url, digest, listed_sha256))
            source = copy
        with translate_read_errors(url):
            file = BatchFile(source, pre_buffer=True)
        with file:
            yield file


def _copy(source: BinaryIO, target: BinaryIO) -> str:
    """Copy a file, and return the hex SHA-256 of its content."""
    digest = hashlib.sha256()
    while chunk := source.read(MAX_RANGE_BYTES):
        digest.update(chunk)
        target.write(chunk)
    target.seek(0)
    return digest.hexdigest()
