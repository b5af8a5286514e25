"""Repeated row ids of an import: what repeats is found on disk, what is kept is found again."""

from pathlib import Path

import pytest

from pipeline.data.importers import duplicate_ids as row_ids
from pipeline.data.importers.duplicate_ids import RowIdHashes, row_id_hash
from pipeline.data.importers.lookup_table import Lookup


@pytest.mark.parametrize("at_once", [1_000_000, 64, 7])
def test_ids_that_repeat_are_found_however_few_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(row_ids, "HASHES_AT_ONCE", at_once)
    with RowIdHashes(tmp_path / "ids") as hashes:
        assert hashes.repeated() == frozenset()
        hashes.add(f"r{n}" for n in range(500))
        hashes.add(["r3", "r499", "r3", "new"])
        assert hashes.repeated() == {row_id_hash("r3"), row_id_hash("r499")}


def test_the_first_texts_of_a_key_stay(tmp_path: Path) -> None:
    with Lookup(tmp_path / "texts") as lookup:
        assert lookup.put("a", "first", None)
        assert not lookup.put("a", "second", "x")
        assert lookup.get("a") == ("first", None)
        assert lookup.get("A") is None
