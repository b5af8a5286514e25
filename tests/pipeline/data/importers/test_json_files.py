"""Reader of json: each line is a record or a defect."""

from pathlib import Path

from pipeline.data.importers.json_files import read_json


def test_each_json_line_is_a_record_or_a_defect(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"a": "x", "b": 2}',
        b'{"a": 2.0, "b": true}',
        b"",
        b'{"b": null}',
        b"[1]",
        b"{",
        b'{"a": [1]}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud83d\\ude00", "b": "\\ud83d"}',
        b"[" * 100_000,
        b'{"a": 1}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\r\n".join(lines))
    records = read_json(tmp_path / "x.jsonl", ["a", "b"])
    assert [(r.number, r.defect or "/".join(v or "" for v in r.fields.values())) for r in records] == [
        (1, "x/2"),
        (2, "2/true"),
        (4, "/"),
        (5, "not_an_object"),
        (6, "not_json"),
        (7, "not_text"),
        (8, "bad_encoding"),
        (9, "\U0001f600/\ufffd"),
        (10, "not_json"),
        (11, "1/"),
    ]
