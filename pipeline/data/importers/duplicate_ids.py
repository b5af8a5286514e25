"""Search for repeated row ids among any number of them, with bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline.storage.hash_partitions import HashPartitions

HASHES_AT_ONCE = 1_000_000  # 8-byte hashes compared at a time: about 50 MB


def row_id_hash(row_id: str) -> bytes:
    """Return an 8-byte hash of a row id."""
    return hashlib.blake2b(row_id.encode(), digest_size=8).digest()


class RowIdHashes:
    """Hashes of all row ids of an import, in a file of 8 bytes per row."""

    def __init__(self, path: Path) -> None:
        self._file, self._folder = path.open("w+b"), path.parent

    def __enter__(self) -> "RowIdHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row_ids: Iterable[str]) -> None:
        """Store the hashes of some row ids."""
        self._file.write(b"".join(map(row_id_hash, row_ids)))

    def find_repeated(self) -> frozenset[bytes]:
        """Return the hashes that occur more than once.

        They include the hashes of all repeated ids, and rarely that of two different ids.
        """
        partitions = HashPartitions("<u8", HASHES_AT_ONCE, self._folder, self._file.tell() // 8)
        for hashes in self._chunks():
            partitions.add(hashes, hashes)
        repeated: set[bytes] = set()
        for hashes in partitions:
            values, counts = np.unique(hashes, return_counts=True)
            repeated |= {value.tobytes() for value in values[counts > 1]}
        return frozenset(repeated)

    def _chunks(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while content := self._file.read(8 * HASHES_AT_ONCE):
            yield np.frombuffer(content, "<u8")
