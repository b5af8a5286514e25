"""Files of rows in a data place, a folder or a bucket.

An object of a bucket is pinned to the version that was listed: every request names its ETag, so that another
content is never read in its place.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.config.tasks import Task, check_known_task
from pipeline.data.catalog import Partition, check_names, content_differs, logical_name, parse_catalogue
from pipeline.data.data_files import CATALOGUE, list_some, scan_folder, sort_names
from pipeline.data.parquet_batches import NOT_PARQUET, BatchFile, translate_read_errors
from pipeline.data.reader import find_partitions, log_once, no_rows_message, open_partition
from pipeline.errors import ConfigError, DataRefusedError, RelevanceError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.filesystem import cached_sha256, file_stamp, json_sha256
from pipeline.storage.object_store import MAX_RANGE_BYTES, Bucket, BucketFile, StoreEntry, open_bucket


@dataclass(frozen=True)
class RowFile:
    """A parquet file of rows, or one version of an object."""

    place: str  # folder or URL
    name: str  # path below the place
    version: str = ""  # ETag of an object; empty for a file
    size: int = 0  # bytes of an object
    listed_sha256: str = ""  # of an object that a catalogue lists

    @property
    def is_object(self) -> bool:
        """Return True for an object of a bucket."""
        return is_bucket(self.place)

    @property
    def url(self) -> str:
        """Path or URL of the file, for messages."""
        return f"{self.place}/{self.name}"

    @property
    def path(self) -> Path:
        """Path of a file that is no object."""
        assert not self.is_object, self.url
        return Path(self.place, self.name)

    def stamp(self) -> tuple[int, ...]:
        """Return the `file_stamp` of a file; empty for an object, whose version is pinned."""
        return () if self.is_object else file_stamp(self.path)

    def content_key(self) -> str:
        """Return a text that is another one for another content: a sha256.

        That of an object is computed from its URL, ETag and size, without reading it.
        """
        if self.is_object:
            return json_sha256([self.url, self.version, self.size, self.listed_sha256])
        return cached_sha256(self.path)

    def open_object(self) -> BucketFile:
        """Open an object for reading by ranges."""
        return BucketFile(open_bucket(self.place), StoreEntry(self.name, 0.0, self.size, self.version))


@dataclass(frozen=True)
class FoundFiles:
    """Files of a data place."""

    by_task: dict[str, list[RowFile]]  # sorted by name
    skipped: str  # sentence about the entries that are not read; empty if there are none


def find_row_files(place: Path | str, tasks: Sequence[Task]) -> FoundFiles:
    """Find the files of a folder or a bucket; see `find_partitions` and `find_objects`."""
    if is_bucket(place):
        return find_objects(str(place), tasks)
    root = Path(place)
    by_task = {
        task: [RowFile(str(root), path.relative_to(root).as_posix()) for path in paths]
        for task, paths in find_partitions(root, tasks).items()
    }
    return FoundFiles(by_task, scan_folder(root).describe_skipped(str(root)))


def find_objects(url: str, tasks: Sequence[Task]) -> FoundFiles:
    """Find the parquet objects of each task below a bucket's prefix.

    Names and sizes are compared with the catalogue; contents when they are copied. Objects that an import has
    not published yet are passed over.

    Raises:
        ConfigError: An object names a task that is not configured, or has no ETag.
        DataRefusedError: There is no parquet object, or one that the catalogue does not list.
        DamagedInputError: An object is missing, or has another size than the catalogue lists.
    """
    bucket = open_bucket(url)
    try:
        listing = _list_objects(bucket)
    except RelevanceError:  # an import may have replaced the catalogue since the objects were listed
        listing = _list_objects(bucket)
    entries, listed = listing.entries, listing.catalogue
    found = sort_names(entries, is_parquet=lambda key: False)
    skipped = "; ".join(filter(None, [found.describe_skipped(bucket.location), listing.describe_pending()]))
    log_once(skipped)
    if not found.by_task:
        raise DataRefusedError(no_rows_message(bucket.location, skipped))
    if unversioned := [key for key in found.names if not entries[key].version]:
        raise ConfigError(
            f"object has no ETag, by which its version is known: {bucket.location}/{unversioned[0]}; use an "
            "object store that gives one"
        )
    by_task = {
        check_known_task(task, tasks, bucket.location).name: [
            RowFile(
                bucket.location,
                key,
                entries[key].version,
                entries[key].size,
                listed[key].sha256 if key in listed else "",
            )
            for key in keys
        ]
        for task, keys in found.by_task.items()
    }
    return FoundFiles(by_task, skipped)


@dataclass(frozen=True)
class _Listing:
    """Objects of a bucket's prefix."""

    location: str
    entries: dict[str, StoreEntry]  # without those of `pending`
    catalogue: dict[str, Partition]  # empty without one
    pending: list[str]  # of an import that has not replaced the catalogue

    def describe_pending(self) -> str:
        """Return a sentence about the objects of an unfinished import; empty if there are none."""
        if not self.pending:
            return ""
        return (
            f"{len(self.pending):,} objects of {self.location} are not published: {list_some(self.pending)}; "
            "their import runs, or was interrupted: run it again"
        )


def _list_objects(bucket: Bucket) -> _Listing:
    """List objects, and compare names and sizes with the catalogue."""
    entries = {entry.key: entry for entry in bucket.list("")}
    if CATALOGUE not in entries:
        return _Listing(bucket.location, entries, {}, [])
    listed = parse_catalogue(bucket.get(CATALOGUE), f"{bucket.location}/{CATALOGUE}")
    names = sort_names(entries, is_parquet=lambda key: False).names
    pending = [key for key in names if key not in listed and logical_name(key) != key]
    for key in pending:
        del entries[key]
    sizes = {key: entries[key].size for key in names if key in entries}
    if error := check_names(listed, sizes, bucket.location):
        raise error
    return _Listing(bucket.location, entries, listed, pending)


def copy_object(file: RowFile, target: IO[bytes], sha256: str = "") -> str:
    """Copy an object by ranges of MAX_RANGE_BYTES, and return the hex SHA-256 of its content.

    Args:
        file: The object.
        target: Receives the content.
        sha256: Of an earlier copy; empty: none.

    Raises:
        RetryableError: Another version is there, or none, or the content differs from that of the copy.
        DamagedInputError: The content is not what the catalogue lists.
    """
    digest = hashlib.sha256()
    source = file.open_object()
    while chunk := source.read(MAX_RANGE_BYTES):
        digest.update(chunk)
        target.write(chunk)
    if file.listed_sha256 and digest.hexdigest() != file.listed_sha256:
        raise content_differs([file.name], file.place)
    if sha256 and digest.hexdigest() != sha256:  # a store that ignores the condition on the version
        raise RetryableError(f"{file.url} changed while it was read; run the same command again")
    return digest.hexdigest()


@contextlib.contextmanager
def open_copy(file: RowFile, sha256: str = "") -> Iterator[tuple[BatchFile, str]]:
    """Open a file that is read whole, an object as a temporary copy without a name.

    Args:
        file: The file.
        sha256: Of its content, if known.

    Yields:
        (open file, hex SHA-256 of its content).

    Raises:
        DamagedInputError: It is not whole parquet, or see `copy_object`.
        RetryableError: See `copy_object`.
    """
    if not file.is_object:
        with open_partition(file.path) as opened:
            yield opened, sha256 or cached_sha256(file.path)
        return
    with tempfile.TemporaryFile() as copy:
        found_sha256 = copy_object(file, copy, sha256)
        copy.seek(0)
        with translate_read_errors(file.url, NOT_PARQUET):
            opened = BatchFile(copy)
        with opened:
            yield opened, found_sha256


@contextlib.contextmanager
def open_in_place(file: RowFile) -> Iterator[BatchFile]:
    """Open a file of which a part is read; of an object, only that part is requested.

    Raises:
        DamagedInputError: It is not whole parquet.
        RetryableError: Another version of the object is there, or none.
    """
    if not file.is_object:
        with open_partition(file.path) as opened:
            yield opened
        return
    with translate_read_errors(file.url, NOT_PARQUET):
        opened = BatchFile(file.open_object())
    with opened:
        yield opened
