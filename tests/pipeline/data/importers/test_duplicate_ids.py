"""Repeated row ids, found on disk."""

from pathlib import Path

import pytest

from pipeline.data.importers import duplicate_ids
from pipeline.data.importers.duplicate_ids import RowIdHashes, row_id_hash


@pytest.mark.parametrize("at_once", [1_000_000, 64, 7])
def test_repeated_ids_are_found_over_any_number_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicate_ids, "HASHES_AT_ONCE", at_once)
    with RowIdHashes(tmp_path / "ids") as hashes:
        assert hashes.find_repeated() == frozenset()
        hashes.add(f"r{n}" for n in range(500))
        hashes.add(["r3", "r499", "r3", "new"])
        assert hashes.find_repeated() == {row_id_hash("r3"), row_id_hash("r499")}
