"""Digests of keys in files, in parts by hash: equal keys are found in bounded memory.

Each digest is written and read once, so time is linear in the number of keys. Memory is about 100 bytes for
each key of a part: PART_KEYS keys, or 1/MAX_PARTS of all keys if that is more.

Shape legend: N keys, C keys of a chunk, P keys of a part, R keys that are repeated.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

PART_KEYS = 500_000

MAX_PARTS = 256  # each is an open file


class DigestParts:
    """Digests of keys by position, in files without a name, which end with the process."""

    def __init__(self, num_keys: int, folder: Path | None = None) -> None:
        """Open the files.

        Args:
            num_keys: Number of keys to come, roughly.
            folder: Where the files are; None: the system's folder of temporary files.
        """
        num_parts = min(MAX_PARTS, max(1, -(-num_keys // PART_KEYS)))
        self._files = [tempfile.TemporaryFile(dir=folder) for _ in range(num_parts)]  # noqa: SIM115

    def add(self, first: int, digest_C2: np.ndarray) -> None:
        """Add the digests of the keys at successive positions; those that are 0 are left out."""
        offset_C = np.flatnonzero(digest_C2[:, 0])
        # digests are uniform, so each residue has about the same number
        part_C = digest_C2[offset_C, 0] % len(self._files)
        order_C = np.argsort(part_C, kind="stable")
        offset_C, part_C = offset_C[order_C], part_C[order_C]
        record_C3 = np.column_stack((digest_C2[offset_C], (offset_C + first).astype("<u8")))
        bounds = np.searchsorted(part_C, np.arange(len(self._files) + 1))
        for file, start, end in zip(self._files, bounds[:-1], bounds[1:], strict=True):
            if end > start:
                file.write(record_C3[start:end].tobytes())

    def find_repeated(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the keys that occur more than once, part by part.

        Yields:
            ((R,) number of the key in its part, (R,) position), sorted by both.
        """
        for file in self._files:
            file.seek(0)
            record_P3 = np.frombuffer(file.read(), "<u8").reshape(-1, 3)
            order_P = np.lexsort((record_P3[:, 2], record_P3[:, 1], record_P3[:, 0]))
            is_later_P = mark_later(record_P3[order_P, :2])
            is_repeated_P = is_later_P.copy()
            is_repeated_P[:-1] |= is_later_P[1:]
            key_R = np.cumsum(~is_later_P)[is_repeated_P]
            yield key_R, record_P3[order_P[is_repeated_P], 2].astype(np.int64)

    def close(self) -> None:
        """Free the space on the disk."""
        for file in self._files:
            file.close()


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
