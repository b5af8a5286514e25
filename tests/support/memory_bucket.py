"""Bucket in memory that counts requests and may delay them, as a real object store does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from obstore.store import MemoryStore

from pipeline.data import row_files
from pipeline.scoring import work_units
from pipeline.storage import object_store
from pipeline.storage.object_store import Bucket, StoreEntry

PAGE_KEYS = 1_000  # of a listing, as S3 has it


class MemoryBucket(Bucket):
    """Bucket with the pipeline's own requests.

    Attributes:
        requests: Method and key of each request so far; a listing has one for each page.
        latency_s: Added to each request.
    """

    def __init__(self, name: str = "memory") -> None:
        self.location, self._store = f"s3://{name}", MemoryStore()  # type: ignore[assignment]
        self.requests: list[tuple[str, str]] = []
        self.latency_s = 0.0

    def _request(self, method: str, key: str) -> None:
        self.requests.append((method, key))
        if self.latency_s:
            time.sleep(self.latency_s)

    def get(self, key: str) -> bytes:
        self._request("get", key)
        return super().get(key)

    def get_range(self, key: str, version: str, start: int, end: int) -> bytes:
        self._request("get_range", key)
        return super().get_range(key, version, start, end)

    def put(self, key: str, content: bytes) -> None:
        self._request("put", key)
        super().put(key, content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        self._request("put_if_absent", key)
        return super().put_if_absent(key, content)

    def exists(self, key: str) -> bool:
        self._request("exists", key)
        return super().exists(key)

    def list(self, folder: str) -> Iterator[StoreEntry]:
        self._request("list", folder)
        for number, entry in enumerate(super().list(folder), start=1):
            if number % PAGE_KEYS == 0:
                self._request("list", folder)
            yield entry

    def delete(self, key: str) -> None:
        self._request("delete", key)
        super().delete(key)

    def requested(self, method: str, folder: str = "") -> int:
        """Return the number of requests so far of a method, for keys that begin with `folder`."""
        return sum(found == method and key.startswith(folder) for found, key in self.requests)

    @contextmanager
    def opened_by_location(self) -> Iterator[None]:
        """Let the pipeline open this bucket, whatever location it names."""
        with (
            patch.object(object_store, "open_bucket", lambda url: self),
            patch.object(row_files, "open_bucket", lambda url: self),
            patch.object(work_units, "open_bucket", lambda url: self),
        ):
            yield
