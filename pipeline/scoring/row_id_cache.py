"""Digests of the row ids of work units, kept beside the labels: a run reads the ids of new units only.

Shape legend: C rows of a unit.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.scoring.work_units import WorkUnit
from pipeline.storage.entry_cache import Entry, EntryCache
from pipeline.storage.object_store import Store

FORMAT = 1  # part of the cache's name; another digest of row ids needs another number


class RowIdCache:
    """Digests of the row ids of a run's units. Threads may add at the same time."""

    def __init__(self, scores: Store, name: str, units: Sequence[WorkUnit]) -> None:
        """Start without digests.

        Args:
            scores: The store of all scores.
            name: Of the location of the inputs, see `InputCache`.
            units: All units of the run.
        """
        # with --all-tasks, digests do not depend on the task
        kind = "all-tasks" if any(unit.all_tasks for unit in units) else "by-task"
        self._cache = EntryCache(scores, f"row-ids-{FORMAT}/{name}/{kind}")
        self._units = {_key(unit): unit for unit in units}

    def read(self) -> Iterator[tuple[WorkUnit, np.ndarray]]:
        """Yield units whose content was read before, with (C, 2) digests."""
        for entry in self._cache.read():
            unit = self._units.get(entry.key)
            if unit and entry.stamp == unit.digest and len(entry.value) == 16 * unit.rows:
                yield unit, np.frombuffer(entry.value, "<u8").reshape(-1, 2)

    def add(self, unit: WorkUnit, digest_C2: np.ndarray) -> None:
        """Add the digests of a unit that was read."""
        self._cache.add(Entry(_key(unit), unit.digest, digest_C2.tobytes()))

    def save(self) -> None:
        """Write what was added, and drop units that are gone."""
        self._cache.save({key: unit.digest for key, unit in self._units.items()})


def _key(unit: WorkUnit) -> str:
    first, last = unit.part or (0, unit.rows)
    return f"{unit.path} {first}-{last}"
