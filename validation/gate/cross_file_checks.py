"""Checks across files: row_ids used twice, and query-ad pairs labeled twice.

Hashes are partitioned on disk in one pass and compared bucket by bucket. Beside one bucket, memory holds one
byte per row.

Shape legend: F files, N rows of a file, M rows of a batch, K rows of a bucket, P positions in a bucket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from pipeline.storage.hash_partitions import HashPartitions
from validation.gate.file_checks import FileVerdict

BUCKET_ROWS = 250_000  # compared at once: about 15 MB

REPEATED_ID, REPEATED_PAIR, LABEL_CONFLICT = "row_id_repeated", "pair_repeated", "labels_conflict"

ConflictPolicy = Literal["drop", "majority", "keep"]

_KEY = np.dtype([("hash", "u8"), ("row", "i8"), ("file", "i4"), ("label", "i4")])

_SALT_FACTOR = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Duplicates:
    """Rows to quarantine because of other rows, and pairs whose labels differ."""

    rows: list[dict[str, np.ndarray]]  # (F,): row numbers of each file by reason
    conflicting_pairs: dict[str, int]  # by task
    conflicting_rows: dict[str, int]  # by task


def find_duplicates(verdicts: Sequence[FileVerdict], policy: ConflictPolicy, scratch_dir: Path) -> Duplicates:
    """Find repeated row_ids and repeated (task, query, ad) pairs.

    The first row of a row_id stays, in the order of the files. Of a pair with equal labels the first row
    stays. Of a pair with different labels, the first row of each label that `policy` keeps stays. Rows that
    are bad by themselves are left out. A file in `scratch_dir` holds 24 bytes per row meanwhile.
    """
    collector = _Collector(verdicts, scratch_dir)
    for bucket in collector.buckets("row_id_hash"):
        collector.add(bucket, np.flatnonzero(~bucket.is_first()), REPEATED_ID)
    tasks = sorted({verdict.task for verdict in verdicts})
    pairs, rows = Counter[str](dict.fromkeys(tasks, 0)), Counter[str](dict.fromkeys(tasks, 0))
    # the salt separates the pairs of different tasks
    salts = [tasks.index(verdict.task) for verdict in verdicts]
    for bucket in collector.buckets("pair_hash", salts):
        repeated, conflicting = bucket.repeats()
        repeats, conflicts = [repeated], [np.zeros(0, dtype=np.int64)]
        for group in conflicting:
            task = verdicts[int(bucket.file_K[group[0]])].task
            pairs[task] += 1
            rows[task] += len(group)
            labels = bucket.label_K[group]
            kept = kept_labels(labels, policy)
            for label in np.unique(labels).tolist():
                same_label = group[labels == label]
                if label in kept:
                    repeats.append(same_label[1:])
                else:
                    conflicts.append(same_label)
        collector.add(bucket, np.concatenate(repeats), REPEATED_PAIR)
        collector.add(bucket, np.concatenate(conflicts), LABEL_CONFLICT)
    return Duplicates(collector.rows(), dict(pairs), dict(rows))


def kept_labels(labels: np.ndarray, policy: ConflictPolicy) -> set[int]:
    """Return the labels of a conflicting pair that stay."""
    values, counts = np.unique(labels, return_counts=True)
    if policy == "keep":
        return set(values.tolist())
    if policy == "majority" and (counts == counts.max()).sum() == 1:
        return {int(values[counts.argmax()])}
    return set()


def bad_row_mask(verdict: FileVerdict) -> np.ndarray:
    """Return a mask of the rows that are bad by themselves (N,)."""
    bad_N = np.zeros(verdict.rows, dtype=bool)
    if verdict.bad_rows:
        rows = pq.read_table(Path(verdict.folder) / "reasons.parquet", columns=["row"])["row"]
        bad_N[rows.to_numpy()] = True
    return bad_N


class Bucket:
    """Rows whose hash occurs more than once, sorted by hash, then file, then row."""

    def __init__(
        self, hash_K: np.ndarray, file_K: np.ndarray, row_K: np.ndarray, label_K: np.ndarray
    ) -> None:
        order = np.lexsort((row_K, file_K, hash_K))
        self.hash_K = hash_K[order]
        self.file_K = file_K[order]
        self.row_K = row_K[order]
        self.label_K = label_K[order]

    def is_first(self) -> np.ndarray:
        """Mark the first row of each hash (K,)."""
        return np.diff(self.hash_K, prepend=~self.hash_K[:1]) != 0

    def repeats(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Split repeated rows by whether the labels of their hash agree.

        Returns:
            Positions of all but the first row of each hash whose labels agree (P,), and for each other hash
            the positions of its rows.
        """
        if not len(self.hash_K):
            return np.zeros(0, dtype=np.int64), []
        is_first_K = self.is_first()
        starts = np.flatnonzero(is_first_K)
        lowest, highest = (f.reduceat(self.label_K, starts) for f in (np.minimum, np.maximum))
        conflicts = lowest != highest  # by group
        group_K = np.cumsum(is_first_K) - 1
        ends = np.append(starts[1:], len(self.hash_K))
        agreeing = np.flatnonzero(~is_first_K & ~conflicts[group_K])
        return agreeing, [np.arange(starts[group], ends[group]) for group in np.flatnonzero(conflicts)]


class _Collector:
    """Reader of the keys of all files, and collector of the rows to quarantine."""

    def __init__(self, verdicts: Sequence[FileVerdict], scratch_dir: Path) -> None:
        self._verdicts, self._scratch_dir = verdicts, scratch_dir
        self._excluded = [bad_row_mask(verdict) for verdict in verdicts]  # (F,) masks (N,)
        self._rows: list[dict[str, list[np.ndarray]]] = [{} for _ in verdicts]  # (F,) by reason

    def add(self, bucket: Bucket, positions_P: np.ndarray, reason: str) -> None:
        """Record the rows at some positions of a bucket; later buckets leave them out."""
        file_P, row_P = bucket.file_K[positions_P], bucket.row_K[positions_P]
        for file in np.unique(file_P).tolist():
            rows = row_P[file_P == file]
            self._rows[file].setdefault(reason, []).append(rows)
            self._excluded[file][rows] = True

    def rows(self) -> list[dict[str, np.ndarray]]:
        """Return the recorded row numbers of each file by reason, in ascending order."""
        return [
            {reason: np.sort(np.concatenate(parts)) for reason, parts in sorted(by_reason.items())}
            for by_reason in self._rows
        ]

    def buckets(self, column: str, salts: Sequence[int] | None = None) -> Iterator[Bucket]:
        """Yield the rows that share their hash in `column`.

        Args:
            column: Column of keys.parquet.
            salts: Number of each file; equal hashes of files with different numbers do not match.
        """
        num_rows = sum(verdict.rows for verdict in self._verdicts)
        partitions = HashPartitions(_KEY, BUCKET_ROWS, self._scratch_dir, num_rows)
        for index in range(len(self._verdicts)):
            salt = np.uint64((salts[index] if salts else 0) * _SALT_FACTOR % 2**64)
            for keys_M in self._read_keys(index, column, salt):
                partitions.add(keys_M["hash"], keys_M)
        for keys_M in partitions:
            shared = keys_M[is_repeated(keys_M["hash"])]
            if len(shared):
                yield Bucket(shared["hash"], shared["file"], shared["row"], shared["label"])

    def _read_keys(self, index: int, column: str, salt: np.uint64) -> Iterator[np.ndarray]:
        """Yield the keys of the rows of a file that are not excluded."""
        verdict, start = self._verdicts[index], 0
        if verdict.refused or not verdict.rows:
            return
        with pq.ParquetFile(Path(verdict.folder) / "keys.parquet") as file:
            for batch in file.iter_batches(1 << 20, columns=[column, "label"]):
                selected = np.flatnonzero(~self._excluded[index][start : start + batch.num_rows])
                keys_M = np.empty(len(selected), _KEY)
                keys_M["hash"] = batch[column].to_numpy()[selected] ^ salt
                keys_M["row"] = start + selected
                keys_M["file"] = index
                keys_M["label"] = batch["label"].to_numpy()[selected]
                yield keys_M
                start += batch.num_rows


def is_repeated(values_M: np.ndarray) -> np.ndarray:
    """Mark the values that occur more than once (M,)."""
    sorted_M = np.sort(values_M)
    repeated = np.unique(sorted_M[1:][sorted_M[1:] == sorted_M[:-1]])
    if not len(repeated):
        return np.zeros(len(values_M), dtype=bool)
    nearest = np.minimum(np.searchsorted(repeated, values_M), len(repeated) - 1)
    return repeated[nearest] == values_M
