"""Rejects file of an import."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers import rejects
from pipeline.data.importers.records import SourceRecord
from pipeline.data.importers.rejects import (
    MAX_TEXT_CHARS,
    SCHEMA,
    BadRecordError,
    Rejects,
    escape_source_text,
)


def _number_of_good_record(record: SourceRecord) -> int:
    if record.number in (3, 5, 8):
        raise BadRecordError("empty_id")
    return record.number


def test_rejects_have_line_reason_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "FLUSH_LINES", 2)
    records = [SourceRecord(n, {"a": "b"}, f"text {n}" if n < 8 else "") for n in range(1, 20)]
    with Rejects(tmp_path / "q" / "x.parquet", Path("x.csv")) as kept:
        assert list(kept.build_all(records, _number_of_good_record)) == [
            n for n in range(1, 20) if n not in (3, 5, 8)
        ]
    kept.check_share()
    assert (kept.num_records, kept.reasons) == (19, {"empty_id": 3})
    table = pq.read_table(tmp_path / "q" / "x.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"line": 3, "reason": "empty_id", "text": "text 3"},
        {"line": 5, "reason": "empty_id", "text": "text 5"},
        {"line": 8, "reason": "empty_id", "text": '{"a":"b"}'},
    ]


def test_invisible_characters_are_escaped() -> None:
    assert (
        escape_source_text("a\tb\r\n\x00\x1b[31m\x85\u202e\udcff\ud800é靴")
        == "a\\tb\\r\\n\\x00\\x1b[31m\\x85\\u202e\\xff\\ud800é靴"
    )


def test_long_texts_are_cut(tmp_path: Path) -> None:
    assert escape_source_text("x" * 10_000) == "x" * MAX_TEXT_CHARS
    assert len(escape_source_text("\x00" * 10_000)) == MAX_TEXT_CHARS
