"""Scores of texts that the same model was asked about in the run before: a pair that is scored every day is judged once.

Shape legend: N rows, M rows known.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit import Root, judged_tasks, last_record, read_manifest, unaltered
from pipeline.errors import DamagedInputError, RelevanceError
from pipeline.store import Store
from pipeline.tasks import Task

HASH_BYTES = 16
MAX_ROWS = 5_000_000  # of a task that an actor keeps: 36 bytes each
KEPT = ("input_hash", "probability", "label", "expected_grade")


@dataclass(frozen=True)
class Known:
    """Rows of one task with their scores, in the order of their hashes."""

    hash_M: np.ndarray  # bytes
    probability_M: np.ndarray
    label_M: np.ndarray
    grade_M: np.ndarray

    def find(self, hash_N: np.ndarray) -> np.ndarray:
        """The place of each row's hash (N,), -1 where it is not known."""
        place_N = np.searchsorted(self.hash_M, hash_N)
        inside_N = place_N < len(self.hash_M)
        found_N = np.zeros(len(hash_N), bool)
        found_N[inside_N] = self.hash_M[place_N[inside_N]] == hash_N[inside_N]
        return np.where(found_N, place_N, -1)


NOTHING_KNOWN = Known(np.zeros(0, f"S{HASH_BYTES}"), np.zeros(0), np.zeros(0, np.int32), np.zeros(0))


def input_hashes(table: pa.Table, task: Task) -> np.ndarray:
    """A hash of what the task's template reads of each row (N,): rows with one hash get one score from one model."""
    texts = [table.column(name).to_pylist() for name in ("query", *task.ad_columns)]
    return np.array([hashlib.blake2b(repr(row).encode(), digest_size=HASH_BYTES).digest() for row in zip(*texts, strict=True)], f"S{HASH_BYTES}")


def hashes_as_arrow(hash_N: np.ndarray) -> pa.Array:
    """The same as a column; numpy itself would drop zeros at the end of a hash."""
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(hash_N), [None, pa.py_buffer(hash_N.tobytes())])


def cached_files(root: Root, bundle_sha256: str, precision: str = "native") -> dict[str, list[dict[str, Any]]]:
    """The label files of each task in the last accepted run, where it was of the same model and they of the same precision; as many as MAX_ROWS
    allows."""
    record = last_record(root)
    if record is None or record["bundle_sha256"] != bundle_sha256:
        return {}
    files: dict[str, list[dict[str, Any]]] = {}
    rows: Counter[str] = Counter()
    for partition in record["partitions"]:
        try:
            manifest = read_manifest(root, partition)
        except DamagedInputError:  # or removed, to have it scored again
            continue
        if manifest.get("precision", "native") != precision:
            continue
        tasks = judged_tasks(manifest)
        for task in tasks:
            if rows[task] + manifest["rows"] // len(tasks) <= MAX_ROWS:
                rows[task] += manifest["rows"] // len(tasks)
                files.setdefault(task, []).extend(manifest["files"])
    return files


class ScoreCache:
    """What an actor knows, read when a task is first asked for."""

    def __init__(self, store: Store, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.store, self.files = store, files
        self.known: dict[str, Known] = {}

    def of_task(self, task: str) -> Known:
        """The task's rows. A file that is gone, altered, out of reach, or of a release without hashes is passed over: its rows are judged again."""
        if task not in self.known:
            self.known[task] = known_rows(filter(None, (self._read(file, task) for file in self.files.get(task, ()))))
        return self.known[task]

    def _read(self, file: Mapping[str, Any], task: str) -> pa.Table | None:
        try:
            content = unaltered(self.store, file)
        except (OSError, RelevanceError):
            return None
        if content is None:
            return None
        opened = pq.ParquetFile(pa.BufferReader(content))
        if not set(KEPT) <= set(opened.schema_arrow.names):
            return None
        return opened.read(columns=[*KEPT, "task"]).filter(pc.field("task") == task)  # a file may hold labels of all tasks


def known_rows(tables: Iterable[pa.Table]) -> Known:
    """Rows of label files, each text once."""
    whole = [table for table in tables if table.num_rows]
    if not whole:
        return NOTHING_KNOWN
    table = pa.concat_tables(whole)
    hash_M, first_M = np.unique(np.array(table.column("input_hash").to_pylist(), f"S{HASH_BYTES}"), return_index=True)
    probability, label, grade = (table.column(name).to_numpy()[first_M] for name in KEPT[1:])
    return Known(hash_M, probability, label, grade)
