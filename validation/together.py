"""What no file can see alone: row_ids used twice, and pairs judged twice. Hashes are compared bucket by bucket, so memory stays bounded.

Shape legend: F files, N rows of a file, K rows of a bucket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from validation.partition import PartitionVerdict

BUCKET_ROWS = 4_000_000  # compared at once: about 200 MB
REPEATED_ID, REPEATED_PAIR, CONFLICT = "row_id_repeated", "pair_repeated", "labels_conflict"
ConflictPolicy = Literal["drop", "majority", "keep"]


@dataclass(frozen=True)
class Repeats:
    """Rows to set aside, by file and reason, as row numbers; and pairs with unlike labels, by task."""

    rows: list[dict[str, np.ndarray]]  # (F,)
    conflicting_pairs: dict[str, int]
    conflicting_rows: dict[str, int]


def find_repeats(verdicts: Sequence[PartitionVerdict], policy: ConflictPolicy) -> Repeats:
    """Later uses of a row_id, in the order of the files; then of a (task, query, ad), for equal labels all but the first and for unlike
    ones as `policy` says. Rows that are bad by themselves take no part."""
    gone = [bad_rows(verdict) for verdict in verdicts]
    tasks = {name: number for number, name in enumerate(sorted({v.task for v in verdicts}))}
    found: list[dict[str, list[int]]] = [{} for _ in verdicts]
    for bucket in buckets(verdicts, gone, "row_id_hash"):
        later_K = np.flatnonzero(bucket.hash_K[1:] == bucket.hash_K[:-1]) + 1
        bucket.set_aside(later_K, REPEATED_ID, found, gone)
    pairs: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    names = list(tasks)
    for bucket in buckets(verdicts, gone, "pair_hash", salt=[tasks[v.task] for v in verdicts]):
        later_K, conflicting = bucket.repeats()
        bucket.set_aside(later_K, REPEATED_PAIR, found, gone)
        for group in conflicting:
            labels = bucket.label_K[group]
            task = verdicts[int(bucket.file_K[group[0]])].task
            pairs[task] += 1
            rows[task] += len(group)
            kept = kept_labels(labels, policy)
            for label in np.unique(labels):
                alike = group[labels == label]
                bucket.set_aside(alike[1:] if label in kept else alike, REPEATED_PAIR if label in kept else CONFLICT, found, gone)
    arrays = [{reason: np.sort(np.asarray(numbers, dtype=np.int64)) for reason, numbers in sorted(file.items())} for file in found]
    return Repeats(arrays, {name: pairs[name] for name in names}, {name: rows[name] for name in names})


def kept_labels(labels: np.ndarray, policy: ConflictPolicy) -> set[int]:
    """The labels of a conflicting pair that stay."""
    values, counts = np.unique(labels, return_counts=True)
    if policy == "keep":
        return set(values.tolist())
    if policy == "majority" and (counts == counts.max()).sum() == 1:
        return {int(values[counts.argmax()])}
    return set()


def bad_rows(verdict: PartitionVerdict) -> np.ndarray:
    """Whether each row of a file is bad by itself (N,)."""
    bad_N = np.zeros(verdict.rows, dtype=bool)
    if verdict.bad_rows:
        bad_N[pq.read_table(Path(verdict.folder) / "reasons.parquet", columns=["row"])["row"].to_numpy()] = True
    return bad_N


class Bucket:
    """Rows whose hashes fall together, sorted by hash, then file, then row."""

    def __init__(self, hash_K: np.ndarray, file_K: np.ndarray, row_K: np.ndarray, label_K: np.ndarray) -> None:
        order = np.lexsort((row_K, file_K, hash_K))
        self.hash_K, self.file_K, self.row_K, self.label_K = hash_K[order], file_K[order], row_K[order], label_K[order]

    def repeats(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places of all but the first row of each hash whose labels agree, and the places of each hash whose labels do not."""
        if not len(self.hash_K):
            return np.zeros(0, dtype=np.int64), []
        is_first_K = np.concatenate([[True], self.hash_K[1:] != self.hash_K[:-1]])
        starts = np.flatnonzero(is_first_K)
        unlike = np.minimum.reduceat(self.label_K, starts) != np.maximum.reduceat(self.label_K, starts)
        group_K = np.cumsum(is_first_K) - 1
        ends = np.append(starts[1:], len(self.hash_K))
        return np.flatnonzero(~is_first_K & ~unlike[group_K]), [np.arange(starts[group], ends[group]) for group in np.flatnonzero(unlike)]

    def set_aside(self, places: np.ndarray, reason: str, found: list[dict[str, list[int]]], gone: list[np.ndarray]) -> None:
        """Note the rows at some places under a reason."""
        for file, row in zip(self.file_K[places].tolist(), self.row_K[places].tolist(), strict=True):
            found[file].setdefault(reason, []).append(row)
            gone[file][row] = True


def buckets(verdicts: Sequence[PartitionVerdict], gone: Sequence[np.ndarray], column: str, salt: Sequence[int] | None = None) -> Iterator[Bucket]:
    """All rows that are not gone, in buckets by the hash in `column`; `salt` keeps the hashes of files apart whose numbers differ."""
    num_buckets = max(1, -(-sum(v.rows for v in verdicts) // BUCKET_ROWS))
    for number in range(num_buckets):
        hashes, files, rows, labels = [], [], [], []
        for index, verdict in enumerate(verdicts):
            if verdict.refused or not verdict.rows:
                continue
            keys = pq.read_table(Path(verdict.folder) / "keys.parquet", columns=[column, "label"])
            hash_N = keys[column].to_numpy() ^ np.uint64((salt[index] if salt else 0) * 0x9E3779B97F4A7C15 % 2**64)
            mine = np.flatnonzero((hash_N % np.uint64(num_buckets) == number) & ~gone[index])
            hashes.append(hash_N[mine])
            files.append(np.full(len(mine), index, dtype=np.int32))
            rows.append(mine)
            labels.append(keys["label"].to_numpy()[mine])
        if hashes:
            yield Bucket(*(np.concatenate(parts) for parts in (hashes, files, rows, labels)))
