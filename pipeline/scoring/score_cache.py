"""Scores of texts that the same model was asked about in the runs before: a pair that is scored every day, or
every few days, is judged once.

Shape legend: N rows, M rows known.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DamagedInputError, RelevanceError
from pipeline.inference.known_scores import NOTHING_KNOWN, Known, hashes_as_numpy
from pipeline.scoring.label_store import Root, accepted_records, judged_tasks, read_manifest, unaltered
from pipeline.storage.object_store import Store

MAX_ROWS = 10_000_000  # that an actor keeps: 36 bytes each, and three times that while they are put in order

MAX_RUNS = 16  # that are looked back on: two weeks of a daily job that no run is added to

MANIFESTS = 8  # that are read at a time

KEPT = ("input_hash", "probability", "label", "expected_grade")


def cached_files(root: Root, bundle_sha256: str) -> dict[str, list[dict[str, Any]]]:
    """The label files of each task in the last accepted runs of the same model; newest runs first, until
    there are MAX_ROWS labels. Labels that an earlier release scored in int8 are left out.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    rows = 0
    for manifest in known_manifests(root, bundle_sha256):
        if manifest.get("precision", "native") != "native":
            continue
        rows += manifest["rows"]
        if rows > MAX_ROWS:
            break
        for task in judged_tasks(manifest):
            files.setdefault(task, []).extend(manifest["files"])
    return files


def known_manifests(root: Root, bundle_sha256: str) -> Iterator[dict[str, Any]]:
    """Those of the last MAX_RUNS accepted runs that were of a model, each once, newest runs first."""
    seen: set[str] = set()
    with contextlib.suppress(DamagedInputError):  # the record of a run: what is known ends there
        for record in itertools.islice(accepted_records(root), MAX_RUNS):
            if record["bundle_sha256"] == bundle_sha256:
                yield from manifests_of(root, [one for one in record["partitions"] if one not in seen])
                seen.update(record["partitions"])


def manifests_of(root: Root, partitions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Their manifests, several read at a time. One that is damaged, or was removed to have its input scored
    again, is passed over.
    """

    def read(partition: str) -> dict[str, Any] | None:
        with contextlib.suppress(DamagedInputError):
            return read_manifest(root, partition)
        return None

    with ThreadPoolExecutor(MANIFESTS) as pool:
        yield from filter(None, pool.map(read, partitions))


class ScoreCache:
    """What an actor knows, read when a task is first asked for."""

    def __init__(self, store: Store, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.store, self.files = store, files
        self.known: dict[str, Known] = {}

    def of_task(self, task: str, on_file: Callable[[], None] = lambda: None) -> Known:
        """The task's rows. A file that is gone, altered, out of reach, or of a release without hashes is
        passed over: its rows are judged again. `on_file` is called before each one that is read.
        """
        if task not in self.known:
            self.known[task] = known_rows(
                filter(None, (self._read(file, task, on_file) for file in self.files.get(task, ())))
            )
        return self.known[task]

    def _read(self, file: Mapping[str, Any], task: str, on_file: Callable[[], None]) -> pa.Table | None:
        on_file()
        try:
            content = unaltered(self.store, file)
        except (OSError, RelevanceError):
            return None
        if content is None:
            return None
        opened = pq.ParquetFile(pa.BufferReader(content))
        if not set(KEPT) <= set(opened.schema_arrow.names):
            return None
        # a file may hold labels of all tasks
        return opened.read(columns=[*KEPT, "task"]).filter(pc.field("task") == task)


def known_rows(tables: Iterable[pa.Table]) -> Known:
    """Rows of label files, each text once."""
    whole = [table for table in tables if table.num_rows]
    if not whole:
        return NOTHING_KNOWN
    table = pa.concat_tables(whole)
    hash_M, first_M = np.unique(hashes_as_numpy(table.column("input_hash")), return_index=True)
    probability, label, grade = (table.column(name).to_numpy()[first_M] for name in KEPT[1:])
    return Known(hash_M, probability, label, grade)
