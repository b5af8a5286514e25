"""Records partitioned by a hash on disk: equal hashes share a partition, and each record is written once.

A search for repeated hashes then takes time linear in the records, and memory for one partition.

Shape legend: M records of a batch.
"""

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FLUSH_BYTES = 32 << 20  # of records in memory before they are written


class HashPartitions:
    """Records in partitions by their hash, in memory or in a file without a name."""

    def __init__(
        self, dtype: np.typing.DTypeLike, partition_records: int, folder: Path | None, num_records: int
    ) -> None:
        """Start without records.

        Args:
            dtype: Type of a record.
            partition_records: Number of records of a partition, on average.
            folder: Holds the file, which ends with this object; None: the system's folder of temporary files.
            num_records: Number of records to expect, roughly.
        """
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._num_partitions = max(1, -(-num_records // partition_records))
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(self._num_partitions)]
        self._waiting_bytes = 0
        self._segments: list[list[tuple[int, int]]] = [[] for _ in range(self._num_partitions)]
        self._file: Any = None
        self._lock = threading.Lock()

    def add(self, hash_M: np.ndarray, records_M: np.ndarray) -> None:
        """Add records by their hashes, uint64 and uniform. Threads may add at the same time."""
        # 16 bits, which NumPy sorts in linear time
        kind = np.uint16 if self._num_partitions < 2**16 else np.uint64
        partition_M = (hash_M % np.uint64(self._num_partitions)).astype(kind)
        order = np.argsort(partition_M, kind="stable")
        present, starts = np.unique(partition_M[order], return_index=True)
        parts = np.split(records_M.take(order, axis=0), starts[1:])  # six times as fast as indexing
        with self._lock:
            for number, part in zip(present.tolist(), parts, strict=False):
                self._waiting[number].append(part)
            self._waiting_bytes += records_M.nbytes
            if self._waiting_bytes >= FLUSH_BYTES:
                self._write_waiting()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the records of each partition, in the order in which they were added."""
        for waiting, segments in zip(self._waiting, self._segments, strict=True):
            parts = [np.frombuffer(self._read(*segment), self._dtype) for segment in segments]
            yield np.concatenate([np.empty(0, self._dtype), *parts, *waiting])

    def _write_waiting(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        for waiting, segments in zip(self._waiting, self._segments, strict=True):
            if waiting:
                content = np.concatenate(waiting).tobytes()
                segments.append((self._file.tell(), len(content)))
                self._file.write(content)
                waiting.clear()
        self._file.flush()
        self._waiting_bytes = 0

    def _read(self, start: int, length: int) -> bytes:
        content = os.pread(self._file.fileno(), length, start)
        if len(content) != length:
            raise OSError(f"temporary file in {self._folder} ends after {len(content)} of {length} bytes")
        return content
