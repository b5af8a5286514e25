"""Texts by key, on disk."""

from pathlib import Path

from pipeline.data.importers.lookup_table import Lookup


def test_first_texts_of_a_key_stay(tmp_path: Path) -> None:
    with Lookup(tmp_path / "texts") as lookup:
        assert lookup.put("a", "first", None)
        assert not lookup.put("a", "second", "x")
        assert lookup.get("a") == ("first", None)
        assert lookup.get("A") is None
