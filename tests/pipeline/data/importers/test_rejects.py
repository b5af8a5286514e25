"""Rejects file of an import."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers import rejects
from pipeline.data.importers.records import SourceRecord
from pipeline.data.importers.rejects import MAX_TEXT_CHARS, SCHEMA, Rejects, escape_invisible


def test_rejects_have_line_reason_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "FLUSH_LINES", 2)
    kept = Rejects(tmp_path / "q" / "x.parquet", Path("x.csv"))
    kept.num_records = 100
    for number in (3, 5, 8):
        kept.add(SourceRecord(number, {"a": "b"}, f"text {number}" if number < 8 else ""), "empty_id")
    kept.close()
    table = pq.read_table(tmp_path / "q" / "x.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"line": 3, "reason": "empty_id", "text": "text 3"},
        {"line": 5, "reason": "empty_id", "text": "text 5"},
        {"line": 8, "reason": "empty_id", "text": '{"a":"b"}'},
    ]


def test_invisible_characters_are_escaped() -> None:
    assert (
        escape_invisible("a\tb\r\n\x00\x1b[31m\x85\u202e\udcff\ud800é靴")
        == "a\\tb\\r\\n\\x00\\x1b[31m\\x85\\u202e\\xff\\ud800é靴"
    )


def test_long_texts_are_cut(tmp_path: Path) -> None:
    assert escape_invisible("x" * 10_000) == "x" * MAX_TEXT_CHARS
    assert len(escape_invisible("\x00" * 10_000)) == MAX_TEXT_CHARS
