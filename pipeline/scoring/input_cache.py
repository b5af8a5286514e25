"""Digests and numbers of rows of input files, kept beside the labels: a plan reads only files that are new.

An entry holds for a file's size, times and inode, or for an object's version. It may be wrong all the same:
actors compute the digest of what they score, and a file that fails is forgotten.
"""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from models.files import bytes_sha256, parse_json
from pipeline.errors import WRONG_FIELDS
from pipeline.names import is_bucket
from pipeline.publishing.unit_store import Root
from pipeline.storage.entry_cache import Entry, EntryCache
from pipeline.storage.filesystem import cached_sha256
from pipeline.storage.object_store import open_store

FORMAT = 1  # part of the cache's name

SETTLED_S = 2.0  # a file system may give a later change the same time


@dataclass(frozen=True)
class _Known:
    stamp: str
    digest: str
    num_rows: int | None = None  # None: not counted


class InputCache:
    """Recorded digests and numbers of rows of the files of one location."""

    def __init__(self, scores: Root, location: Path | str) -> None:
        """Read what earlier commands recorded.

        Args:
            scores: The location of all scores.
            location: The location of the inputs.
        """
        self.name = bytes_sha256(str(location).encode())[:24]  # of this cache and of others of the location
        self._cache = EntryCache(open_store(scores), f"inputs-{FORMAT}/{self.name}")
        self._known: dict[str, _Known] = {}
        self._stamps: dict[str, str] = {}  # of the files that are recorded
        for entry in self._cache.read():
            if known := _parse(entry):
                self._known[entry.key] = known

    def sha256(self, path: Path) -> str:
        """Return the digest of a local file, which is read only if it is not known."""
        stamp, known = _stamp(path), self._known.get(str(path))
        if known is None or known.stamp != stamp:
            known = self._known[str(path)] = _Known(stamp, cached_sha256(path))
        return known.digest

    def num_rows(self, path: str, digest: str) -> int | None:
        """Return the number of rows of a file of a digest; None if it is not known."""
        known = self._known.get(path)
        return known.num_rows if known and known.digest == digest else None

    def record(self, path: str, digest: str, num_rows: int) -> None:
        """Record a planned file; one without rows may not have been readable."""
        known = self._known.get(path)
        stamp = digest if is_bucket(path) else known.stamp if known and known.digest == digest else ""
        if not num_rows or not stamp:
            return
        self._stamps[path] = stamp
        if known is None or known.num_rows != num_rows or known.digest != digest:
            self._known[path] = _Known(stamp, digest, num_rows)
            if is_bucket(path) or _is_settled(stamp):
                value = json.dumps([digest, num_rows]).encode()
                self._cache.add(Entry(path, stamp, value))

    def save(self) -> None:
        """Write what was recorded, and drop files that are gone."""
        self._cache.save(self._stamps)

    def forget(self, paths: Collection[str]) -> None:
        """Drop files that failed: with a wrong entry they would fail again."""
        if paths:
            self._cache.save(self._stamps, paths)
            for path in paths:
                self._known.pop(path, None)
                self._stamps.pop(path, None)


def _parse(entry: Entry) -> _Known | None:
    try:
        digest, num_rows = parse_json(entry.value)
        return _Known(entry.stamp, str(digest), int(num_rows))
    except WRONG_FIELDS:
        return None


def _stamp(path: Path) -> str:
    """Return values of a file that change when it is written or replaced."""
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"


def _is_settled(stamp: str) -> bool:
    """Return True if a change after the file was read would change its times."""
    _, modified_ns, changed_ns, _ = map(int, stamp.split())
    return max(modified_ns, changed_ns) < (time.time() - SETTLED_S) * 1e9
