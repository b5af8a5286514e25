"""What no file can see alone: row_ids used twice, and pairs judged twice. Hashes are compared bucket by
bucket: beside a bucket, memory holds one byte a row.

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

from validation.gate.file_checks import PartitionVerdict

BUCKET_ROWS = 1_000_000  # compared at once: about 60 MB

REPEATED_ID, REPEATED_PAIR, CONFLICT = "row_id_repeated", "pair_repeated", "labels_conflict"

ConflictPolicy = Literal["drop", "majority", "keep"]


@dataclass(frozen=True)
class Repeats:
    """Rows to set aside, by file and reason, as row numbers; and pairs with unlike labels, by task."""

    rows: list[dict[str, np.ndarray]]  # (F,)
    conflicting_pairs: dict[str, int]
    conflicting_rows: dict[str, int]


def find_repeats(verdicts: Sequence[PartitionVerdict], policy: ConflictPolicy) -> Repeats:
    """Later uses of a row_id, in the order of the files; then of a (task, query, ad), for equal labels all
    but the first and for unlike ones as `policy` says. Rows that are bad by themselves take no part.
    """
    gone = [bad_rows(verdict) for verdict in verdicts]
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in verdicts]
    for bucket in buckets(verdicts, gone, "row_id_hash"):
        bucket.set_aside(np.flatnonzero(~bucket.is_first()), REPEATED_ID, found, gone)
    tasks = sorted({verdict.task for verdict in verdicts})
    pairs, rows = Counter[str](dict.fromkeys(tasks, 0)), Counter[str](dict.fromkeys(tasks, 0))
    for bucket in buckets(
        verdicts, gone, "pair_hash", salt=[tasks.index(verdict.task) for verdict in verdicts]
    ):
        repeated, conflicting = bucket.repeats()
        alike, unlike = [repeated], [np.zeros(0, dtype=np.int64)]
        for group in conflicting:
            labels = bucket.label_K[group]
            task = verdicts[int(bucket.file_K[group[0]])].task
            pairs[task] += 1
            rows[task] += len(group)
            kept = kept_labels(labels, policy)
            for label in np.unique(labels).tolist():
                of_label = group[labels == label]
                if label in kept:
                    alike.append(of_label[1:])
                else:
                    unlike.append(of_label)
        bucket.set_aside(np.concatenate(alike), REPEATED_PAIR, found, gone)
        bucket.set_aside(np.concatenate(unlike), CONFLICT, found, gone)
    arrays = [
        {reason: np.sort(np.concatenate(parts)) for reason, parts in sorted(file.items())} for file in found
    ]
    return Repeats(arrays, dict(pairs), dict(rows))


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
        bad_N[pq.read_table(Path(verdict.folder) / "reasons.parquet", columns=["row"])["row"].to_numpy()] = (
            True
        )
    return bad_N


class Bucket:
    """Those rows whose hash another row has too, sorted by hash, then file, then row."""

    def __init__(
        self, hash_K: np.ndarray, file_K: np.ndarray, row_K: np.ndarray, label_K: np.ndarray
    ) -> None:
        order = np.lexsort((row_K, file_K, hash_K))
        self.hash_K, self.file_K, self.row_K, self.label_K = (
            hash_K[order],
            file_K[order],
            row_K[order],
            label_K[order],
        )

    def is_first(self) -> np.ndarray:
        """Whether each row is the first of its hash (K,)."""
        return np.diff(self.hash_K, prepend=~self.hash_K[:1]) != 0

    def repeats(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places of all but the first row of each hash whose labels agree, and the places of each hash whose
        labels do not.
        """
        if not len(self.hash_K):
            return np.zeros(0, dtype=np.int64), []
        is_first_K = self.is_first()
        starts = np.flatnonzero(is_first_K)
        unlike = np.minimum.reduceat(self.label_K, starts) != np.maximum.reduceat(self.label_K, starts)
        group_K = np.cumsum(is_first_K) - 1
        ends = np.append(starts[1:], len(self.hash_K))
        return np.flatnonzero(~is_first_K & ~unlike[group_K]), [
            np.arange(starts[group], ends[group]) for group in np.flatnonzero(unlike)
        ]

    def set_aside(
        self,
        places: np.ndarray,
        reason: str,
        found: list[dict[str, list[np.ndarray]]],
        gone: list[np.ndarray],
    ) -> None:
        """Note the rows at some places under a reason."""
        file_P, row_P = self.file_K[places], self.row_K[places]
        for file in np.unique(file_P).tolist():
            rows = row_P[file_P == file]
            found[file].setdefault(reason, []).append(rows)
            gone[file][rows] = True


def buckets(
    verdicts: Sequence[PartitionVerdict],
    gone: Sequence[np.ndarray],
    column: str,
    salt: Sequence[int] | None = None,
) -> Iterator[Bucket]:
    """The rows that are not gone and share their hash in `column`, bucket by bucket; `salt` keeps the hashes
    of files apart whose numbers differ.
    """
    num_buckets = max(1, -(-sum(v.rows for v in verdicts) // BUCKET_ROWS))
    for number in range(num_buckets):
        parts = []
        for index, verdict in enumerate(verdicts):
            if verdict.refused or not verdict.rows:
                continue
            mark, start = np.uint64((salt[index] if salt else 0) * 0x9E3779B97F4A7C15 % 2**64), 0
            with pq.ParquetFile(Path(verdict.folder) / "keys.parquet") as file:
                for keys in file.iter_batches(1 << 20, columns=[column, "label"]):
                    hash_M = keys[column].to_numpy() ^ mark
                    is_mine_M = ~gone[index][start : start + len(hash_M)]
                    if num_buckets > 1:
                        is_mine_M &= hash_M % np.uint64(num_buckets) == number
                    mine = np.flatnonzero(is_mine_M)
                    parts.append(
                        (
                            hash_M[mine],
                            np.full(len(mine), index, dtype=np.int32),
                            start + mine,
                            keys["label"].to_numpy()[mine],
                        )
                    )
                    start += len(hash_M)
        if parts:
            hash_M, *others = (np.concatenate(column) for column in zip(*parts, strict=True))
            shared = shared_values(hash_M)
            if len(shared):
                sharing = np.flatnonzero(
                    shared[np.minimum(np.searchsorted(shared, hash_M), len(shared) - 1)] == hash_M
                )
                yield Bucket(hash_M[sharing], *(other[sharing] for other in others))


def shared_values(value_M: np.ndarray) -> np.ndarray:
    """The values that occur more than once, rising."""
    sorted_M = np.sort(value_M)
    return np.unique(sorted_M[1:][sorted_M[1:] == sorted_M[:-1]])
