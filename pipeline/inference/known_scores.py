"""Scores that are known already, found by the hash of a row's texts."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task

HASH_BYTES = 16


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
    """A hash of what the task's template reads of each row (N,): rows with one hash get one score from one
    model.
    """
    texts = [table.column(name).to_pylist() for name in ("query", *task.ad_columns)]
    return np.array(
        [
            hashlib.blake2b(repr(row).encode(), digest_size=HASH_BYTES).digest()
            for row in zip(*texts, strict=True)
        ],
        f"S{HASH_BYTES}",
    )


def hashes_as_arrow(hash_N: np.ndarray) -> pa.Array:
    """The same as a column; numpy itself would drop zeros at the end of a hash."""
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(hash_N), [None, pa.py_buffer(hash_N.tobytes())])


def hashes_as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A column of hashes, none of them null, as `input_hashes` has them; without a Python object for each of
    millions.
    """
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return np.concatenate(
        [
            np.frombuffer(chunk.buffers()[1], f"S{HASH_BYTES}")[chunk.offset : chunk.offset + len(chunk)]
            for chunk in chunks
        ]
    )
