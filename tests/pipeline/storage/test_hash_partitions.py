"""Records with equal hashes share a partition, in their order, from memory and from disk."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.storage import hash_partitions
from pipeline.storage.hash_partitions import HashPartitions


@pytest.mark.parametrize("flush_bytes", [1 << 20, 1_000, 1])
@pytest.mark.parametrize("partition_records", [10_000, 300, 7])
def test_each_record_is_in_its_partition_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush_bytes: int, partition_records: int
) -> None:
    monkeypatch.setattr(hash_partitions, "FLUSH_BYTES", flush_bytes)
    hash_N = np.random.default_rng(0).integers(0, 2**64, 800, np.uint64).repeat(3)
    records_N = np.arange(len(hash_N))
    partitions = HashPartitions("i8", partition_records, tmp_path, len(hash_N))
    for start in range(0, len(hash_N), 100):
        partitions.add(hash_N[start : start + 100], records_N[start : start + 100])
    for _ in range(2):  # may be read again
        found = [part.tolist() for part in partitions]
        assert all(part == sorted(part) for part in found)
        assert sorted(record for part in found for record in part) == records_N.tolist()
        hashes = [set(hash_N[part].tolist()) for part in found]
        assert sum(map(len, hashes)) == 800 and max(map(len, found)) < 3 * partition_records + 60
    assert not list(tmp_path.iterdir())


def test_no_record_gives_one_empty_partition(tmp_path: Path) -> None:
    assert [len(part) for part in HashPartitions("i8", 10, tmp_path, 0)] == [0]


def test_record_of_several_numbers_stays_whole(tmp_path: Path) -> None:
    partitions = HashPartitions(np.dtype(("<u8", 3)), 2, tmp_path, 8)
    records_N3 = np.arange(24, dtype="<u8").reshape(8, 3)
    partitions.add(records_N3[:, 0], records_N3)
    found = np.concatenate(list(partitions))
    assert sorted(found.tolist()) == records_N3.tolist()
