"""Row ids that repeat, found among any number of them with bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

HASHES_AT_ONCE = 1_000_000  # hashes of 8 bytes compared at once: about 50 MB


def row_id_hash(row_id: str) -> bytes:
    """8 bytes that stand for a row id."""
    return hashlib.blake2b(row_id.encode(), digest_size=8).digest()


class RowIdHashes:
    """The hashes of all row ids of an import, in a file of 8 bytes a row."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")

    def __enter__(self) -> "RowIdHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row_ids: Iterable[str]) -> None:
        """Note the ids of some rows."""
        self._file.write(b"".join(map(row_id_hash, row_ids)))

    def repeated(self) -> frozenset[bytes]:
        """The hashes that occur more than once: those of all ids that repeat, and one in millions by
        accident.
        """
        num_hashes = self._file.tell() // 8
        num_parts = -(-num_hashes // HASHES_AT_ONCE)
        found: set[bytes] = set()
        for part in range(num_parts):
            # uniform, so that each residue has about as many
            chosen = np.concatenate([hashes[hashes % num_parts == part] for hashes in self._chunks()])
            values, counts = np.unique(chosen, return_counts=True)
            found |= {value.tobytes() for value in values[counts > 1]}
        return frozenset(found)

    def _chunks(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while content := self._file.read(8 * HASHES_AT_ONCE):
            yield np.frombuffer(content, "<u8")
