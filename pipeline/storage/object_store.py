"""Stores of contents by key: a folder, or a bucket of an object store with the S3 protocol.

Both write atomically, and both can create a key only if it is absent.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.filesystem import list_files, put_if_absent, safe_join, write_bytes
from pipeline.storage.object_store_errors import to_location_error, translate_store_errors

REQUEST_TIMEOUT_S = 60

CONNECT_TIMEOUT_S = 10

MAX_RANGE_BYTES = 16 * 2**20  # of one request, so that a slow connection stays within the timeout

PART_BYTES = 16 * 2**20  # of an upload; 10,000 parts are allowed, so 156 GiB an object

MAX_PARTS = 4  # uploaded at a time, so 64 MiB in memory

RETRY_CONFIG = {"max_retries": 5, "retry_timeout": timedelta(seconds=90)}


@dataclass(frozen=True)
class StoreEntry:
    """One key of a listing."""

    key: str
    modified_s: float
    size: int
    version: str  # changes with the content: ETag, or inode and time in a folder

    @property
    def is_hidden(self) -> bool:
        """Return True for a temporary file that is being written."""
        return self.key.rpartition("/")[2].startswith(".")


class Store(ABC):
    """Contents by key, such as manifests/p.json. Writes are durable on return.

    Raises:
        OSError: The disk fails.
        RetryableError: The object store fails.
        ConfigError: The key, the account or the location is wrong.
    """

    location: str  # path or URL

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the content; FileNotFoundError if the key does not exist."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Replace the content."""

    @abstractmethod
    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Create the key; return False and change nothing if it exists.

        Of several concurrent callers with different contents exactly one gets True. A bucket also returns
        True if the key has this content, as after a request whose answer was lost.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return True if the key exists."""

    @abstractmethod
    def list(self, folder: str) -> Iterator[StoreEntry]:
        """Yield all keys below `folder`, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete the key if it exists."""


class Folder(Store):
    """Store in a folder, local or on a shared file system. No link inside it is followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.location = root, str(root)

    def _path(self, key: str) -> Path:
        return safe_join(self.root, key)

    def _path_in_folder(self, key: str) -> Path:
        """Return the path of a key, and create its folder."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise _no_folder(path.parent) from error
        return path

    def get(self, key: str) -> bytes:
        path = self._path(key)
        if path.exists() and not path.is_file():  # a named pipe has no end
            raise DamagedInputError(f"{path} is not a file; remove it and run the same command again")
        return path.read_bytes()

    def put(self, key: str, content: bytes) -> None:
        write_bytes(self._path_in_folder(key), content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        return put_if_absent(self._path_in_folder(key), content)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, folder: str) -> Iterator[StoreEntry]:
        root, below = self.root.resolve(), self._path(folder)
        try:
            paths = list_files(below)
        except NotADirectoryError as error:
            raise _no_folder(below) from error
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                state = path.lstat()
                version = f"{state.st_ino}-{state.st_mtime_ns}"
                yield StoreEntry(str(path.relative_to(root)), state.st_mtime, state.st_size, version)

    def delete(self, key: str) -> None:
        safe_join(self.root, key, last_may_be_link=True).unlink(missing_ok=True)


def _no_folder(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a folder; remove it, or use another place")


class Bucket(Store):
    """Store in a bucket or below a prefix of one: s3://bucket/prefix.

    Credentials, region and endpoint come from the AWS_ variables or from the machine's role.
    """

    def __init__(self, url: str) -> None:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        self.location = url.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        options: Any = {
            "timeout": f"{REQUEST_TIMEOUT_S}s",
            "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
            "allow_http": endpoint.startswith("http://"),
        }
        try:
            self._store = S3Store.from_url(
                self.location,
                client_options=options,
                retry_config=RETRY_CONFIG,  # type: ignore[arg-type]
            )
        except BaseError as error:
            raise to_location_error(error, self.location) from error

    def get(self, key: str) -> bytes:
        with translate_store_errors(self.location, key):
            return bytes(self._store.get(key).bytes())

    def get_range(self, key: str, version: str, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` of one version; RetryableError if that version is gone."""
        try:
            with translate_store_errors(self.location, key):
                return bytes(
                    self._store.get(key, options={"if_match": version, "range": (start, end)}).bytes()
                )
        except FileNotFoundError as error:
            raise RetryableError(
                f"{self.location}/{key} was deleted while it was read; run the same command again"
            ) from error

    def put(self, key: str, content: bytes) -> None:
        with translate_store_errors(self.location, key):
            self._store.put(key, content, use_multipart=False)

    def put_file(self, key: str, path: Path) -> None:
        """Replace the content by that of a file, which is read in parts; it is visible when it is whole."""
        with translate_store_errors(self.location, key):
            self._store.put(key, path, chunk_size=PART_BYTES, max_concurrency=MAX_PARTS)

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key; FileNotFoundError if it does not exist."""
        with translate_store_errors(self.location, key):
            meta = self._store.head(key)
        return StoreEntry(meta["path"], meta["last_modified"].timestamp(), meta["size"], meta["e_tag"] or "")

    def put_if_absent(self, key: str, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with translate_store_errors(self.location, key):
            try:
                self._store.put(key, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                # obstore repeats a request whose answer was lost; then our own content is there
                return self.get(key) == content
            return True

    def exists(self, key: str) -> bool:
        try:
            with translate_store_errors(self.location, key):
                self._store.head(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Iterator[StoreEntry]:
        with translate_store_errors(self.location, folder):
            objects = [meta for page in self._store.list(folder or None) for meta in page]
        for meta in sorted(objects, key=lambda meta: meta["path"]):
            modified_s, etag = meta["last_modified"].timestamp(), meta["e_tag"] or ""
            yield StoreEntry(meta["path"], modified_s, meta["size"], etag)

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), translate_store_errors(self.location, key):
            self._store.delete(key)


class BucketFile(io.RawIOBase):
    """Read-only file on one version of a bucket's object."""

    def __init__(self, bucket: Bucket, entry: StoreEntry) -> None:
        self._bucket, self._entry, self._position = bucket, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}
        self._position = offset + origins[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        end = min(start + len(buffer), self._entry.size)
        while self._position < end:
            stop = min(end, self._position + MAX_RANGE_BYTES)
            content = self._bucket.get_range(self._entry.key, self._entry.version, self._position, stop)
            filled = self._position - start
            buffer[filled : filled + len(content)] = content
            self._position += len(content)
        return max(0, end - start)


def open_store(location: Path | str | Store) -> Store:
    """Return the store at s3://bucket/prefix or in a folder, which need not exist yet."""
    if isinstance(location, Store):
        return location
    return open_bucket(str(location)) if is_bucket(location) else Folder(Path(location))


def open_bucket(url: str) -> Bucket:
    """Return the process's client of a bucket. It is shared because it keeps connections open.

    Changed AWS_ variables give a new client.
    """
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _cached_bucket(url.rstrip("/"), tuple(settings))


@functools.lru_cache(maxsize=32)
def _cached_bucket(url: str, _settings: tuple[tuple[str, str], ...]) -> Bucket:
    return Bucket(url)
