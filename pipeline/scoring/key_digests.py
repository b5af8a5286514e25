"""Digests of keys in files, in parts by hash: equal keys are found in bounded memory.

Each digest is written and read once, so time is linear in the number of keys. Memory is about 100 bytes for
each of the PART_KEYS keys of a part.

Shape legend: N keys, C keys of a chunk, P keys of a part, R keys that are repeated.
"""

import functools
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.storage.hash_partitions import HashPartitions

PART_KEYS = 500_000

_RECORD = np.dtype(("<u8", 3))  # digest and position


class DigestParts:
    """Digests of keys by position, on a disk."""

    def __init__(self, num_keys: int, folder: Path | None = None) -> None:
        """Start without keys.

        Args:
            num_keys: Number of keys to come, roughly.
            folder: Where the file is; None: the system's folder of temporary files.
        """
        self._new_partitions = functools.partial(HashPartitions, _RECORD, PART_KEYS, folder)
        self._partitions = self._new_partitions(num_keys)

    def add(self, first: int, digest_C2: np.ndarray) -> None:
        """Add the digests of the keys at successive positions; those that are 0 are left out."""
        offset_C = np.flatnonzero(digest_C2[:, 0])
        digest_C2 = digest_C2[offset_C]
        record_C3 = np.column_stack((digest_C2, (offset_C + first).astype("<u8")))
        self._partitions.add(digest_C2[:, 0], record_C3)

    def find_repeated(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the keys that occur more than once, part by part.

        Yields:
            ((R,) number of the key in its part, (R,) position), sorted by both.
        """
        for record_P3 in self._partitions:
            order_P = np.lexsort((record_P3[:, 2], record_P3[:, 1], record_P3[:, 0]))
            is_later_P = mark_later(record_P3[order_P, :2])
            is_repeated_P = is_later_P.copy()
            is_repeated_P[:-1] |= is_later_P[1:]
            key_R = np.cumsum(~is_later_P)[is_repeated_P]
            yield key_R, record_P3[order_P[is_repeated_P], 2].astype(np.int64)

    def close(self) -> None:
        """Free the space on the disk."""
        self._partitions = self._new_partitions(0)


def row_id_digests(row_ids: Sequence[str | None], salt: bytes) -> np.ndarray:
    """Return (N, 2) 16-byte digests of row ids; 0 for null.

    With 16 bytes no two different ids of any run have the same digest, so that ids need not be compared.
    """
    empty, prefix = bytes(16), hashlib.blake2b(salt + b"\0", digest_size=16)

    def digest(row_id: str | None) -> bytes:
        if row_id is None:
            return empty
        hashed = prefix.copy()
        hashed.update(row_id.encode())
        return hashed.digest()

    return np.frombuffer(b"".join(map(digest, row_ids)), "<u8").reshape(-1, 2)


def mark_later(digest_N2: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of the sorted digests that equal the one before."""
    is_later_N = np.zeros(len(digest_N2), bool)
    is_later_N[1:] = (digest_N2[1:] == digest_N2[:-1]).all(1)
    return is_later_N


def create_file_array(shape: tuple[int, ...], dtype: str, folder: Path | None = None) -> np.ndarray:
    """Return an array of zeros in an unnamed file, which the system deletes with the array.

    Its space is reserved: a full disk is an error here.
    """
    if not shape[0]:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, np.dtype(dtype).itemsize * math.prod(shape))
        return np.memmap(file, dtype, "r+", shape=shape)
