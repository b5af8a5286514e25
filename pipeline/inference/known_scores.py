"""Scores that an earlier run computed, looked up by the hash of a row's texts.

Shape legend: N rows, M cached rows.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task

HASH_BYTES = 16

HASHED_ROWS = 1_024  # whose texts are Python objects at a time


@dataclass(frozen=True)
class CachedScores:
    """Scores of rows of one task, sorted by hash."""

    hash_M: np.ndarray  # bytes
    probability_M: np.ndarray
    label_M: np.ndarray
    grade_M: np.ndarray

    def find(self, hash_N: np.ndarray) -> np.ndarray:
        """Return the position of each row's hash (N,); -1: not cached."""
        position_N = np.searchsorted(self.hash_M, hash_N)
        inside_N = position_N < len(self.hash_M)
        is_cached_N = np.zeros(len(hash_N), bool)
        is_cached_N[inside_N] = self.hash_M[position_N[inside_N]] == hash_N[inside_N]
        return np.where(is_cached_N, position_N, -1)


NO_CACHED_SCORES = CachedScores(
    np.zeros(0, f"S{HASH_BYTES}"), np.zeros(0), np.zeros(0, np.int32), np.zeros(0)
)


def input_hashes(table: pa.Table, task: Task) -> np.ndarray:
    """Return a hash of the texts that the task's template reads of each row (N,).

    One model gives rows with equal hashes equal scores.
    """
    texts = table.select(["query", *task.ad_columns])
    return np.array(
        [
            hashlib.blake2b(repr(row).encode(), digest_size=HASH_BYTES).digest()
            for batch in texts.to_batches(max_chunksize=HASHED_ROWS)
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        ],
        f"S{HASH_BYTES}",
    )


def hashes_to_arrow(hash_N: np.ndarray) -> pa.Array:
    """Return hashes as an Arrow array, with trailing zero bytes, which numpy's own conversion drops."""
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(hash_N), [None, pa.py_buffer(hash_N.tobytes())])


def hashes_from_arrow(column: pa.ChunkedArray) -> np.ndarray:
    """Return the hashes of a column without nulls, in the form of `input_hashes`.

    Reads the buffers, because a Python object per hash would be slow.
    """
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return np.concatenate(
        [
            np.frombuffer(chunk.buffers()[1], f"S{HASH_BYTES}")[chunk.offset : chunk.offset + len(chunk)]
            for chunk in chunks
        ]
    )
