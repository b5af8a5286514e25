"""Cache of scores that the same model gave to the same texts in recent runs.

Shape legend: M cached rows.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DamagedInputError, RelevanceError
from pipeline.inference.known_scores import NO_CACHED_SCORES, CachedScores, hashes_from_arrow
from pipeline.publishing.manifest_index import ManifestIndex
from pipeline.publishing.unit_store import (
    CONCURRENT_MANIFESTS,
    PublishedFile,
    Root,
    read_manifest,
    read_unaltered,
)
from pipeline.scoring.scoring_record import ALL_MANIFESTS, accepted_records
from pipeline.scoring.unit_manifest import NATIVE_PRECISION, UnitManifest
from pipeline.storage.object_store import Store

MAX_ROWS = 10_000_000  # of an actor: 36 bytes each, three times that while they are sorted

MAX_RUNS = 16  # two weeks of a daily job with two extra runs

CHUNK_UNITS = 256  # whose manifests are requested before their rows are counted

CACHED_COLUMNS = ("input_hash", "probability", "label", "expected_grade")


@dataclass(frozen=True)
class _ScoredUnit:
    """Manifest without its profiles, as thousands are in memory."""

    tasks: tuple[str, ...]
    precision: str
    num_labels: int
    label_files: tuple[PublishedFile, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "_ScoredUnit":
        """Parse a manifest."""
        manifest = UnitManifest.from_json(fields)
        return cls(manifest.tasks, manifest.precision, manifest.num_labels, manifest.label_files)


def find_cached_files(
    root: Root, bundle_sha256: str, index: str = ALL_MANIFESTS
) -> dict[str, list[PublishedFile]]:
    """Return the label files of recent accepted runs of one model, by task.

    Newest runs come first, until there are MAX_ROWS labels. Labels of another precision are left out.

    Args:
        root: The location of all scores.
        bundle_sha256: Digest of the model's bundle.
        index: Name of the index that has most manifests.

    Raises:
        DamagedInputError: A file among the scoring records is not one; the run's drift could not be measured.
    """
    files: dict[str, list[PublishedFile]] = {}
    rows = 0
    for unit in _recent_units(root, bundle_sha256, index):
        if unit.precision != NATIVE_PRECISION:
            continue
        rows += unit.num_labels
        if rows > MAX_ROWS:
            break
        for task in unit.tasks:
            files.setdefault(task, []).extend(unit.label_files)
    return files


class ScoreCache:
    """Cached scores of an actor, read on the first request for a task."""

    def __init__(
        self,
        store: Store,
        files: Mapping[str, Sequence[PublishedFile]],
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        """`heartbeat` is called before each file is read, as reading a bucket may take minutes."""
        self.store, self.files, self.heartbeat = store, files, heartbeat
        self.scores: dict[str, CachedScores] = {}

    def load_task(self, task: str) -> CachedScores:
        """Return the cached scores of a task.

        Files that are missing, altered, unreachable or without hashes are skipped: their rows are scored
        again.
        """
        if task not in self.scores:
            tables = (self._read(file, task) for file in self.files.get(task, ()))
            self.scores[task] = _merge_tables(table for table in tables if table is not None)
        return self.scores[task]

    def _read(self, file: PublishedFile, task: str) -> pa.Table | None:
        self.heartbeat()
        try:
            content = read_unaltered(self.store, file)
        except (OSError, RelevanceError):
            return None
        if content is None:
            return None
        opened = pq.ParquetFile(pa.BufferReader(content))
        if not set(CACHED_COLUMNS) <= set(opened.schema_arrow.names):
            return None
        # A file may hold labels of several tasks.
        return opened.read(columns=[*CACHED_COLUMNS, "task"]).filter(pc.field("task") == task)


def _recent_units(root: Root, bundle_sha256: str, index: str) -> Iterator[_ScoredUnit]:
    """Yield each unit of the model's runs among the last MAX_RUNS accepted ones, newest runs first.

    Units are left out whose manifest is damaged, or was removed to have their input scored again.
    """
    records = itertools.islice(accepted_records(root), MAX_RUNS)
    unit_ids = [
        unit_id for record in records if record.bundle_sha256 == bundle_sha256 for unit_id in record.unit_ids
    ]
    unit_ids = list(dict.fromkeys(unit_ids))
    known = dict(ManifestIndex(root, index).read_known(_ScoredUnit.from_json, set(unit_ids)))

    def read(unit_id: str) -> _ScoredUnit | None:
        if unit_id in known:
            return known[unit_id]
        with contextlib.suppress(DamagedInputError):
            return read_manifest(root, _ScoredUnit.from_json, unit_id)
        return None

    with ThreadPoolExecutor(CONCURRENT_MANIFESTS) as pool:
        for first in range(0, len(unit_ids), CHUNK_UNITS):
            yield from filter(None, pool.map(read, unit_ids[first : first + CHUNK_UNITS]))


def _merge_tables(tables: Iterable[pa.Table]) -> CachedScores:
    """Merge label tables, and keep the first row of each hash."""
    filled = [table for table in tables if table.num_rows]
    if not filled:
        return NO_CACHED_SCORES
    table = pa.concat_tables(filled)
    hash_M, first_M = np.unique(hashes_from_arrow(table.column("input_hash")), return_index=True)
    probability_M, label_M, grade_M = (table.column(name).to_numpy()[first_M] for name in CACHED_COLUMNS[1:])
    return CachedScores(hash_M, probability_M, label_M, grade_M)
