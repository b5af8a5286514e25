"""Where labels are published, and rows to score may lie: a folder, or a bucket of a store that speaks S3.

Either keeps a key's content whole or absent, and puts it there if absent: of several at once for exactly one.
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

from pipeline.errors import RetryableError
from pipeline.names import is_bucket
from pipeline.storage.filesystem import put_if_absent, safe_join, write_bytes
from pipeline.storage.object_store_errors import asking, unusable

ANSWER_S, CONNECT_S = 60, 10  # that a request may take, and a connection

PIECE = 16 * 2**20  # bytes of one request, so that a slow line answers in time

RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=90)}


@dataclass(frozen=True)
class Entry:
    """One key as a listing has it."""

    key: str
    modified_s: float
    size: int
    version: str  # of the content, as the store calls it; empty in a folder

    @property
    def hidden(self) -> bool:
        """Whether it is no content but a part of one that is being written."""
        return self.key.rpartition("/")[2].startswith(".")


class Store(ABC):
    """Contents by key, such as manifests/p.json. What is put is durable on return. OSError, RetryableError:
    the disk or the store does not do it.
    """

    place: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The content. FileNotFoundError: there is none."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Replace the content."""

    @abstractmethod
    def put_if_absent(self, key: str, content: bytes) -> bool:
        """False, and nothing changed: the key has other content. Of several at once with different contents
        exactly one gets True.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the key has content."""

    @abstractmethod
    def list(self, folder: str) -> Iterator[Entry]:
        """All keys below, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key if it is there."""


class Folder(Store):
    """A folder of this machine or of a file system that all machines see."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)

    def _path(self, key: str) -> Path:
        return safe_join(self.root, key)

    def get(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def put(self, key: str, content: bytes) -> None:
        write_bytes(self._path(key), content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        return put_if_absent(self._path(key), content)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, folder: str) -> Iterator[Entry]:
        for path in sorted(self._path(folder).rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # removed since
                if not path.is_dir():
                    state = path.lstat()
                    yield Entry(str(path.relative_to(self.root.resolve())), state.st_mtime, state.st_size, "")

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)


class Bucket(Store):
    """A bucket, or a prefix in one: s3://bucket/prefix. Credentials, region and endpoint are those of the
    AWS_ variables or of the machine's role.
    """

    def __init__(self, url: str) -> None:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        self.place = url.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        plain = endpoint.startswith("http://")
        options: Any = {"timeout": f"{ANSWER_S}s", "connect_timeout": f"{CONNECT_S}s", "allow_http": plain}
        try:
            self._store = S3Store.from_url(self.place, client_options=options, retry_config=RETRIES)  # type: ignore[arg-type]
        except BaseError as error:
            raise unusable(error, self.place) from error

    def get(self, key: str) -> bytes:
        with asking(self.place, key):
            return bytes(self._store.get(key).bytes())

    def get_range(self, key: str, version: str, start: int, end: int) -> bytes:
        """Bytes of one version. RetryableError: the key has another by now, or none."""
        try:
            with asking(self.place, key):
                return bytes(
                    self._store.get(key, options={"if_match": version, "range": (start, end)}).bytes()
                )
        except FileNotFoundError as error:
            raise RetryableError(
                f"{self.place}/{key} was removed while it was read; run the same command again"
            ) from error

    def put(self, key: str, content: bytes) -> None:
        with asking(self.place, key):
            self._store.put(key, content, use_multipart=False)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with asking(self.place, key):
            try:
                self._store.put(key, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return self.get(key) == content  # its first answer was lost, and the request sent again
            return True

    def exists(self, key: str) -> bool:
        try:
            with asking(self.place, key):
                self._store.head(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Iterator[Entry]:
        with asking(self.place, folder):
            found = [one for page in self._store.list(folder or None) for one in page]
        for one in sorted(found, key=lambda one: one["path"]):
            yield Entry(one["path"], one["last_modified"].timestamp(), one["size"], one["e_tag"] or "")

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), asking(self.place, key):
            self._store.delete(key)


class StoredFile(io.RawIOBase):
    """One version of a bucket's object, for those who read files."""

    def __init__(self, bucket: Bucket, entry: Entry) -> None:
        self._bucket, self._entry, self._at = bucket, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self._at + len(buffer), self._entry.size)
        while self._at < end:
            content = self._bucket.get_range(
                self._entry.key, self._entry.version, self._at, min(end, self._at + PIECE)
            )
            buffer[self._at - start : self._at - start + len(content)] = content
            self._at += len(content)
        return max(0, end - start)


def open_store(place: Path | str | Store) -> Store:
    """The store at a place: s3://bucket/prefix, or a folder, which need not be there yet."""
    if isinstance(place, Store):
        return place
    return open_bucket(str(place)) if is_bucket(place) else Folder(Path(place))


def open_bucket(url: str) -> Bucket:
    """The bucket at a place, one for all who ask in a process: its client keeps connections open."""
    return _opened(
        url.rstrip("/"),
        tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))),
    )


@functools.lru_cache(maxsize=32)
def _opened(url: str, _settings: tuple[tuple[str, str], ...]) -> Bucket:
    return Bucket(url)
