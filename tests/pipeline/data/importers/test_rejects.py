"""Promises of pipeline/data/importers/rejects.py."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers import rejects as quarantine
from pipeline.data.importers.records import Line
from pipeline.data.importers.rejects import MAX_TEXT_CHARS, SCHEMA, Quarantine, visible


def test_bad_lines_are_written_as_they_come_with_line_reason_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "FLUSH_LINES", 2)
    kept = Quarantine(tmp_path / "q" / "x.parquet", Path("x.csv"))
    kept.num_lines = 100
    for number in (3, 5, 8):
        kept.add(Line(number, {"a": "b"}, f"text {number}" if number < 8 else ""), "empty_id")
    kept.close()
    table = pq.read_table(tmp_path / "q" / "x.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"line": 3, "reason": "empty_id", "text": "text 3"},
        {"line": 5, "reason": "empty_id", "text": "text 5"},
        {"line": 8, "reason": "empty_id", "text": '{"a":"b"}'},
    ]


def test_control_characters_marks_of_direction_and_lost_bytes_are_spelled_out() -> None:
    assert (
        visible("a\tb\r\n\x00\x1b[31m\x85\u202e\udcff\ud800é靴")
        == "a\\tb\\r\\n\\x00\\x1b[31m\\x85\\u202e\\xff\\ud800é靴"
    )


def test_texts_are_cut(tmp_path: Path) -> None:
    assert visible("x" * 10_000) == "x" * MAX_TEXT_CHARS
    assert len(visible("\x00" * 10_000)) == MAX_TEXT_CHARS
