"""Cache of scores that the same model gave to the same texts in recent runs.

Shape legend: M cached rows.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DamagedInputError, RelevanceError
from pipeline.inference.known_scores import NO_CACHED_SCORES, CachedScores, hashes_from_arrow
from pipeline.publishing.unit_store import CONCURRENT_MANIFESTS, PublishedFile, Root, read_unaltered
from pipeline.scoring.label_store import read_manifest
from pipeline.scoring.scoring_record import accepted_records
from pipeline.scoring.unit_manifest import NATIVE_PRECISION, UnitManifest
from pipeline.storage.object_store import Store

MAX_ROWS = 10_000_000  # of an actor: 36 bytes each, three times that while they are sorted

MAX_RUNS = 16  # two weeks of a daily job with two extra runs

CACHED_COLUMNS = ("input_hash", "probability", "label", "expected_grade")


def find_cached_files(root: Root, bundle_sha256: str) -> dict[str, list[PublishedFile]]:
    """Return the label files of recent accepted runs of one model, by task.

    Newest runs come first, until there are MAX_ROWS labels. Labels of another precision are left out.

    Raises:
        DamagedInputError: A file among the scoring records is not one; the run's drift could not be measured.
    """
    files: dict[str, list[PublishedFile]] = {}
    rows = 0
    for manifest in _recent_manifests(root, bundle_sha256):
        if manifest.precision != NATIVE_PRECISION:
            continue
        rows += manifest.num_labels
        if rows > MAX_ROWS:
            break
        for task in manifest.tasks:
            files.setdefault(task, []).extend(manifest.label_files)
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


def _recent_manifests(root: Root, bundle_sha256: str) -> Iterator[UnitManifest]:
    """Yield each manifest of the model's runs among the last MAX_RUNS accepted ones, newest runs first."""
    seen: set[str] = set()
    for record in itertools.islice(accepted_records(root), MAX_RUNS):
        if record.bundle_sha256 == bundle_sha256:
            yield from _read_manifests(root, [unit_id for unit_id in record.unit_ids if unit_id not in seen])
            seen.update(record.unit_ids)


def _read_manifests(root: Root, unit_ids: Sequence[str]) -> Iterator[UnitManifest]:
    """Yield manifests, and skip those that are damaged or were removed to have their input scored again."""

    def read(unit_id: str) -> UnitManifest | None:
        with contextlib.suppress(DamagedInputError):
            return read_manifest(root, unit_id)
        return None

    with ThreadPoolExecutor(CONCURRENT_MANIFESTS) as pool:
        yield from filter(None, pool.map(read, unit_ids))


def _merge_tables(tables: Iterable[pa.Table]) -> CachedScores:
    """Merge label tables, and keep the first row of each hash."""
    filled = [table for table in tables if table.num_rows]
    if not filled:
        return NO_CACHED_SCORES
    table = pa.concat_tables(filled)
    hash_M, first_M = np.unique(hashes_from_arrow(table.column("input_hash")), return_index=True)
    probability_M, label_M, grade_M = (table.column(name).to_numpy()[first_M] for name in CACHED_COLUMNS[1:])
    return CachedScores(hash_M, probability_M, label_M, grade_M)
