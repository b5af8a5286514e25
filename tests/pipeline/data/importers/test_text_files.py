"""Readers of text files: right line numbers, no lost record, defects stay with their own line."""

from pathlib import Path

import pytest

from pipeline.data.importers import text_files
from pipeline.data.importers.json_files import read_json
from pipeline.data.importers.records import SourceRecord
from pipeline.data.importers.text_files import TSV, TextFormat, read_delimited, read_headerless_tsv
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError


def _read(
    tmp_path: Path, content: bytes, encoding: str = "utf-8", columns: tuple[str, ...] = ("a", "b")
) -> list[SourceRecord]:
    (tmp_path / "x.csv").write_bytes(content)
    return list(read_delimited(tmp_path / "x.csv", columns, TextFormat(",", encoding=encoding)))


def _summary(lines: list[SourceRecord]) -> list[tuple[int, str]]:
    return [
        (line.number, line.defect or "/".join(value or "" for value in line.fields.values()))
        for line in lines
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n3,4\n", [(2, "1/2"), (3, "3/4")]),
        (b"a,b\n1,2", [(2, "1/2")]),
        (b"\xef\xbb\xbfa,b\n1,2\n", [(2, "1/2")]),
        (b"a,b\r\n1,2\r\n\r\n3,4\r\n", [(2, "1/2"), (4, "3/4")]),
        (b'a,b\n1,"x\ny"\n3,4\n', [(2, "1/x\ny"), (4, "3/4")]),
        (b'a,b\r\n1,"x\r\ny"\r\n3,4\r\n', [(2, "1/x\r\ny"), (4, "3/4")]),
        (b'"a",b\n"1 ""2""",3"\n', [(2, '1 "2"/3"')]),
        (b'"a\nb",b,a\n1,2,3\n', [(3, "1/2/3")]),
        (b"a,b\n1\n2,3,4\n5,6\n", [(2, "wrong_field_count"), (3, "wrong_field_count"), (4, "5/6")]),
        (b'a,b\n1,"x"y\n3,4\n', [(2, "misplaced_quote"), (3, "3/4")]),
        (b'a,b\n1,"x\n3,4\n5,6\n', [(2, "unclosed_quote"), (3, "3/4"), (4, "5/6")]),
        (b'a,b\n1,"x\n3,4\ny"\n7,8\n', [(2, "1/x\n3,4\ny"), (5, "7/8")]),
        (b'a,b\n1,"x\ny\n3,z"\n7,8\n', [*((n, "ambiguous_quotes") for n in (2, 3, 4)), (5, "7/8")]),
        (b'a,b\n1,"x\ny"z\n7,8"\n', [(2, "unclosed_quote"), (3, "wrong_field_count"), (4, "unclosed_quote")]),
        (b'a,b\n"1,x\n3,4\n5,6"\n7,8\n', [(2, "unclosed_quote"), (3, "3/4"), (4, '5/6"'), (5, "7/8")]),
        (b"a,b\n1,\xff\n3,\xc3\xa9\n", [(2, "bad_encoding"), (3, "3/é")]),
        (b"a,b\n1,\xed\xa0\xbd\xed\xb8\x80\n", [(2, "1/\U0001f600")]),
        (b"a,b\n1,x\x00y\n", [(2, "1/x\x00y")]),
        ("a,b\n1,x\u2028y\x0by\x85z\n3,4\n".encode(), [(2, "1/x\u2028y\x0by\x85z"), (3, "3/4")]),
        (b"a,b\n", []),
    ],
)
def test_records_and_defects_have_their_first_line_number(
    tmp_path: Path, content: bytes, expected: list
) -> None:
    assert _summary(_read(tmp_path, content)) == expected


def test_encoding_is_stated_and_never_guessed(tmp_path: Path) -> None:
    content = "a,b\n1,café\n3,4\n".encode("latin-1")
    assert _summary(_read(tmp_path, content, "latin-1")) == [(2, "1/café"), (3, "3/4")]
    assert _summary(_read(tmp_path, content)) == [(2, "bad_encoding"), (3, "3/4")]
    assert _summary(_read(tmp_path, "a,b\n1,靴\n".encode("utf-16"), "utf-16")) == [(2, "1/靴")]
    assert _summary(_read(tmp_path, "a,b\n1,靴\n".encode("shift_jis"), "shift_jis")) == [(2, "1/靴")]


def test_invalid_utf_16_is_damaged_input(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="utf-16|header"):
        _read(tmp_path, b"a,b\n1,2\n3\n", "utf-16")


def test_unclosed_quote_costs_one_line(tmp_path: Path) -> None:
    lines = _read(tmp_path, b'a,b\n1,"x\n' + b"".join(b"%d,y\n" % n for n in range(3_000)))
    assert _summary(lines[:2]) == [(2, "unclosed_quote"), (3, "0/y")]
    assert len(lines) == 3_001 and lines[-1].number == 3_002


def test_overlong_line_is_skipped_and_shown_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_RECORD_CHARS", 100)
    lines = _read(tmp_path, b"a,b\n1," + b"x" * 1_000 + b"\n3,4\n")
    assert _summary(lines) == [(2, "line_too_long"), (3, "3/4")]
    assert len(lines[0].text) <= 101
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "' + b"x" * 1_000 + b'"}\n{"a": 1}\n')
    assert _summary(list(read_json(tmp_path / "x.jsonl", ["a"]))) == [(1, "line_too_long"), (2, "1")]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DamagedInputError, "is empty"),
        (b"\xff\xfe\x00\n1,2\n", DamagedInputError, "does not begin with a header line in utf-8"),
        (b'"a,b\n1,2\n', DamagedInputError, "does not begin with a header line"),
        (b"a,c\n1,2\n", DataRefusedError, "has no column b, only a, c"),
        (b"a;b\n1;2\n", DataRefusedError, "has no column a, b, only a;b"),
        (b"a,b,a\n1,2,3\n", DataRefusedError, "names column a twice"),
    ],
)
def test_file_without_a_usable_header_is_refused(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _read(tmp_path, content)


def test_folder_in_place_of_a_file_is_a_config_error(tmp_path: Path) -> None:
    for read in (
        lambda: read_delimited(tmp_path, ["a"], TSV),
        lambda: read_json(tmp_path, ["a"]),
        lambda: read_headerless_tsv(tmp_path, ["a"]),
    ):
        with pytest.raises(ConfigError, match="is not a file"):
            list(read())


def test_headerless_fields_keep_their_quotes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'"a\tb"\n\nc\nd\t\xff\ne\tf\n')
    assert _summary(list(read_headerless_tsv(tmp_path / "x", ["a", "b"]))) == [
        (1, '"a/b"'),
        (3, "wrong_field_count"),
        (4, "bad_encoding"),
        (5, "e/f"),
    ]
