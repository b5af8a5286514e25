"""Cache of values in a store, in segments that any number of processes write at once.

    <root>/cache/<name>/<sha256 of the content>.parquet   a segment: keys, stamps, values

A segment is never changed. One that is lost, torn or altered is passed over: that costs time, and no entry is
ever believed for another stamp. The folder `cache` may be deleted at any time.
"""

import io
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from models.files import bytes_sha256
from pipeline.errors import DamagedInputError, RelevanceError
from pipeline.storage.object_store import Store

logger = logging.getLogger(__name__)

FOLDER = "cache"

SEGMENT_BYTES = 8 * 2**20  # keys, stamps and values, before compression

CONCURRENT_SEGMENTS = 4  # in memory together

_SUFFIX = ".parquet"

_SCHEMA = pa.schema([("key", pa.string()), ("stamp", pa.string()), ("value", pa.large_binary())])


@dataclass(frozen=True)
class Entry:
    """A cached value."""

    key: str
    stamp: str  # changes with what the value was computed from
    value: bytes

    @property
    def num_bytes(self) -> int:
        """Size in a segment, before compression."""
        return len(self.key) + len(self.stamp) + len(self.value)


class EntryCache:
    """Entries of one name. Threads may add entries at the same time.

    Small segments, and those of which less than half is current, are merged when the cache is saved. So the
    number of segments, and the work of a save, follow from the size of what is current.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._folder = store, f"{FOLDER}/{name}"
        self._segments: dict[str, list[tuple[str, str, int]]] = {}  # key, stamp, size of entries, by segment
        self._added: list[Entry] = []
        self._added_bytes = 0
        self._lock = threading.Lock()

    def read(self) -> Iterator[Entry]:
        """Yield all entries. A key may come more than once, with old stamps too."""
        keys = [entry.key for entry in self._store.list(self._folder) if self._is_segment(entry.key)]
        with ThreadPoolExecutor(CONCURRENT_SEGMENTS) as pool:
            for first in range(0, len(keys), CONCURRENT_SEGMENTS):
                some = keys[first : first + CONCURRENT_SEGMENTS]
                for key, entries in zip(some, pool.map(self._read_segment, some), strict=True):
                    self._segments[key] = [(entry.key, entry.stamp, entry.num_bytes) for entry in entries]
                    yield from entries

    def add(self, entry: Entry) -> None:
        """Add an entry, which is written with others or by `save`; one larger than a segment is left out."""
        if entry.num_bytes > SEGMENT_BYTES:
            return
        with self._lock:
            self._added.append(entry)
            self._added_bytes += entry.num_bytes
            if self._added_bytes >= SEGMENT_BYTES:
                self._write_added()

    def save(self, stamps: Mapping[str, str], forgotten: Collection[str] = ()) -> None:
        """Write what was added, and merge segments that were read.

        The work of a command does not depend on it: a failure is logged.

        Args:
            stamps: The current stamp of each key; other entries may be dropped.
            forgotten: Keys whose entries must go.
        """
        try:
            with self._lock:
                self._save(stamps, set(forgotten))
        except (OSError, RelevanceError) as error:
            logger.warning("cache not written: %s/%s (%s)", self._store.location, self._folder, error)

    def _save(self, stamps: Mapping[str, str], forgotten: set[str]) -> None:
        merged = [key for key, entries in self._segments.items() if _is_stale(entries, stamps, forgotten)]
        small = [key for key, entries in self._segments.items() if _size(entries) < SEGMENT_BYTES // 2]
        if self._added or merged or len(small) > 1:
            merged = list(dict.fromkeys([*merged, *small]))
        self._added = [entry for entry in self._added if entry.key not in forgotten]
        written = set()
        for key in merged:
            for entry in self._read_segment(key):
                if stamps.get(entry.key) == entry.stamp and entry.key not in forgotten:
                    self._added.append(entry)
                    self._added_bytes += entry.num_bytes
            if self._added_bytes >= SEGMENT_BYTES:
                written.add(self._write_added())
        if self._added:
            written.add(self._write_added())
        for key in set(merged) - written:
            self._store.delete(key)
            del self._segments[key]

    def _write_added(self) -> str:
        """Write the added entries as a segment. Equal entries make an equal segment, whoever writes it."""
        entries = sorted({entry.key: entry for entry in self._added}.values(), key=lambda entry: entry.key)
        columns = {
            "key": [entry.key for entry in entries],
            "stamp": [entry.stamp for entry in entries],
            "value": [entry.value for entry in entries],
        }
        file = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_SCHEMA), file, compression="zstd", use_dictionary=False)
        content = file.getvalue()
        key = f"{self._folder}/{bytes_sha256(content)}{_SUFFIX}"
        self._store.put(key, content)
        self._segments[key] = [(entry.key, entry.stamp, entry.num_bytes) for entry in entries]
        self._added, self._added_bytes = [], 0
        return key

    def _is_segment(self, key: str) -> bool:
        folder, _, name = key.rpartition("/")
        return folder == self._folder and not name.startswith(".")

    def _read_segment(self, key: str) -> list[Entry]:
        """Return the entries of a segment; none if it is lost, or not as it was written."""
        try:
            content = self._store.get(key)
        except (FileNotFoundError, DamagedInputError):
            return []
        if key != f"{self._folder}/{bytes_sha256(content)}{_SUFFIX}":
            return []
        columns = pq.read_table(pa.BufferReader(content)).to_pydict()
        return list(map(Entry, columns["key"], columns["stamp"], columns["value"]))


def _size(entries: Sequence[tuple[str, str, int]]) -> int:
    return sum(num_bytes for _, _, num_bytes in entries)


def _is_stale(
    entries: Sequence[tuple[str, str, int]], stamps: Mapping[str, str], forgotten: Collection[str]
) -> bool:
    """Return True if at most half of a segment is current, or a key of it must go."""
    current = [entry for entry in entries if stamps.get(entry[0]) == entry[1]]
    return 2 * _size(current) <= _size(entries) or any(key in forgotten for key, _, _ in entries)
