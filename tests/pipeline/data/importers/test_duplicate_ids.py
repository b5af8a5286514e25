"""Repeated row ids and texts by key, both on disk."""

from pathlib import Path

import pytest

from pipeline.data.importers import duplicate_ids
from pipeline.data.importers.duplicate_ids import RowIdHashes, row_id_hash
from pipeline.data.importers.lookup_table import Lookup


@pytest.mark.parametrize("at_once", [1_000_000, 64, 7])
def test_repeated_ids_are_found_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicate_ids, "HASHES_AT_ONCE", at_once)
    with RowIdHashes(tmp_path / "ids") as hashes:
        assert hashes.find_repeated() == frozenset()
        hashes.add(f"r{n}" for n in range(500))
        hashes.add(["r3", "r499", "r3", "new"])
        assert hashes.find_repeated() == {row_id_hash("r3"), row_id_hash("r499")}


def test_first_texts_of_a_key_stay(tmp_path: Path) -> None:
    with Lookup(tmp_path / "texts") as lookup:
        assert lookup.put("a", "first", None)
        assert not lookup.put("a", "second", "x")
        assert lookup.get("a") == ("first", None)
        assert lookup.get("A") is None
