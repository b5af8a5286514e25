"""Index of manifests that earlier commands have read, beside them: a command requests only the new ones.

An entry holds for a manifest as it is listed. Which units are published follows from the listing alone, so an
index that is lost or out of date costs requests and nothing else.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

from pipeline.errors import WRONG_FIELDS
from pipeline.publishing.unit_store import Root, list_manifests, read_manifests
from pipeline.storage.entry_cache import Entry, EntryCache
from pipeline.storage.filesystem import canonical_json, parse_json_object
from pipeline.storage.object_store import open_store

T = TypeVar("T")

FORMAT = 1  # part of the index's name

CHUNK_UNITS = 1_000  # whose manifests are in memory together


class ManifestIndex:
    """Manifests of units that are read together again and again, such as those of one place of inputs."""

    def __init__(self, root: Root, name: str) -> None:
        """List the manifests.

        Args:
            root: The location of the store.
            name: Of the index.
        """
        self._store = open_store(root)
        self._cache = EntryCache(self._store, f"manifests-{FORMAT}/{name}")
        self._stamps = {
            unit_id: f"{entry.version} {entry.size} {entry.modified_s}"
            for unit_id, entry in list_manifests(self._store).items()
        }

    def read(self, parse: Callable[[dict[str, Any]], T], unit_ids: Collection[str]) -> Iterator[T]:
        """Yield the manifests of units, in any order, and keep them for later commands.

        Args:
            parse: Raises one of WRONG_FIELDS for a manifest of another kind.
            unit_ids: The units.

        Raises:
            DamagedInputError: A manifest is missing or damaged.
        """
        new = dict.fromkeys(unit_ids)
        for unit_id, manifest in self.read_known(parse, new):
            del new[unit_id]
            yield manifest
        yield from self._read_new(parse, list(new))
        self._cache.save({unit_id: self._stamps[unit_id] for unit_id in unit_ids if unit_id in self._stamps})

    def read_known(
        self, parse: Callable[[dict[str, Any]], T], unit_ids: Collection[str]
    ) -> Iterator[tuple[str, T]]:
        """Yield the ids and manifests of those units that are in the index, each once."""
        seen: set[str] = set()
        for entry in self._cache.read():
            is_current = entry.key in unit_ids and self._stamps.get(entry.key) == entry.stamp
            if is_current and entry.key not in seen:
                seen.add(entry.key)
                try:
                    yield entry.key, parse(parse_json_object(entry.value))
                except WRONG_FIELDS:
                    continue

    def _read_new(self, parse: Callable[[dict[str, Any]], T], unit_ids: Sequence[str]) -> Iterator[T]:
        for first in range(0, len(unit_ids), CHUNK_UNITS):
            chunk = unit_ids[first : first + CHUNK_UNITS]
            read = read_manifests(self._store, lambda fields: (fields, parse(fields)), chunk)
            for unit_id, (fields, manifest) in zip(chunk, read, strict=True):
                if stamp := self._stamps.get(unit_id):
                    self._cache.add(Entry(unit_id, stamp, canonical_json(fields).encode()))
                yield manifest
