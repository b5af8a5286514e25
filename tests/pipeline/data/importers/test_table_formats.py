"""Formats of tables: quoting, delimiters, gzip, folders of parts and json arrays; no row has two lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.importers import gzip_text, json_files
from pipeline.data.importers.table import TableSource, import_table
from pipeline.data.reader import read_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from tests.support.imported import imported

BLOCK: dict[str, Any] = {
    "kind": "table",
    "task": "ads",
    "name": "log",
    "columns": {"query": "q", "ad_title": "t", "label": "g"},
    "constants": {"market": "us"},
}

INCHES = (
    'q\tt\tg\n17 inch monitor\tMonitor A\t1\n"17 inch screen\tScreen B\t0\nmonitor 17"\tMonitor C\t1\n'
    "red shoes\tShoes D\t0\nblue shoes\tShoes E\t1\n"
)

RECORDS = [{"q": f"query {n}", "t": f"title {n}", "g": n % 2} for n in range(12)]


def _import(path: Path, **settings: Any) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    """Return (id, query, title, label) of the imported rows, and the rejects by reason."""
    out = path.parent / "out"
    counts = import_table(TableSource.model_validate({**BLOCK, "path": path, **settings}), out)
    rows = read_partition(imported(out, "task=ads/log-0.parquet")).to_pylist()
    return [(r["row_id"], r["query"], r["ad_title"], r["label"]) for r in rows], dict(counts.rejected)


def _lines(records: list[dict[str, Any]], delimiter: str = ",") -> str:
    header = delimiter.join(records[0])
    return "\n".join([header, *(delimiter.join(map(str, record.values())) for record in records)]) + "\n"


def test_inch_signs_never_join_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "inches.tsv"
    path.write_text(INCHES)
    with pytest.raises(DataRefusedError, match="quoting: none takes quotes as plain characters"):
        _import(path)
    rows, rejects = _import(path, quoting="none")
    assert not rejects and len(rows) == 5
    assert ("ads.log.3", '"17 inch screen', "Screen B", 0) in rows
    path.write_text(INCHES + "red boots\tBoots\t1\n" * 5)
    for quoting, reason in (("line", "line_break_in_quotes"), ("csv", "ambiguous_quotes")):
        rows, rejects = _import(path, quoting=quoting)
        assert rejects == {reason: 2} and len(rows) == 8, quoting


def test_line_break_in_quotes_gives_no_half_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    header, others = "d,q,t,g\n", "".join(f"d{n},q{n},t{n},1\n" for n in range(30))
    records = {
        '"line one\nline two",shoes,red,0\n': {"line_break_in_quotes": 2},
        '"one\na,b,c,1\nthree",shoes,red,0\n': {"line_break_in_quotes": 3},
        '"one\ntwo",shoes,"red\nand blue",0\n': {"line_break_in_quotes": 3},
        '"a 12" wide\nscreen",shoes,red,0\n': {"misplaced_quote": 1, "unclosed_quote": 1},
        '"one\nof 12" or\nmore",shoes,red,0\n': {"unclosed_quote": 2, "wrong_field_count": 1},
        '"never closed,shoes,red,0\n': {"unclosed_quote": 1},
    }
    for record, expected in records.items():
        path.write_text(header + others + record + others.replace("q", "p"))
        rows, rejects = _import(path)
        assert rejects == expected and len(rows) == 60, record
        assert not [row for row in rows if "shoes" in row[1]], record


def test_asked_line_breaks_in_quotes_stay_in_their_field(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('d,q,t,g\n"Soft, warm\nand red, too",shoes,red,0\n"one\ntwo",boots,"a\nb, c",1\n')
    columns = {**BLOCK["columns"], "ad_description": "d"}
    rows, rejects = _import(path, quoting="csv", columns=columns)
    assert not rejects and [row[1:] for row in sorted(rows)] == [("shoes", "red", 0), ("boots", "a b, c", 1)]


@pytest.mark.parametrize("quoting", ["line", "csv", "none"])
def test_lines_end_as_the_first_one_does(tmp_path: Path, quoting: str) -> None:
    path = tmp_path / "x.csv"
    for end in ("\n", "\r\n", "\r"):
        lone = "\n" if end == "\r" else "\r"
        text = end.join(["q,t,g", f"red{lone}shoes,shoes{lone},1", "boots,boots,0", ""]).encode()
        for content in (text, gzip.compress(text)):
            path.write_bytes(content)
            rows, rejects = _import(path, quoting=quoting)
            expected = [("ads.log.2", "red shoes", "shoes", 1), ("ads.log.3", "boots", "boots", 0)]
            assert not rejects and sorted(rows) == expected, end


def test_key_given_twice_is_no_value(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [*map(json.dumps, RECORDS), '{"q": "a", "t": "b", "g": 1, "g": 0}']
    for text in ("\n".join(lines), f"[{','.join(lines)}]"):
        path.write_text(text)
        rows, rejects = _import(path)
        assert len(rows) == 12 and rejects == {"repeated_key": 1}


def test_phrase_in_quotes_is_text_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text("q\tt\tg\n" + '"red shoes" size 4\tShoes\t1\n' * 3)
    with pytest.raises(DataRefusedError, match="quoting: none takes quotes as plain characters"):
        _import(path)
    rows, rejects = _import(path, quoting="none")
    assert len(rows) == 3 and rows[0][1] == '"red shoes" size 4' and not rejects


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_delimiter_is_a_setting(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(_lines(RECORDS, delimiter))
    for quoting in ("line", "csv", "none"):
        assert len(_import(path, delimiter=delimiter, quoting=quoting)[0]) == 12


def test_unfit_text_settings_are_refused(tmp_path: Path) -> None:
    for delimiter in ("", ";;", '"', "\n"):
        with pytest.raises(ValueError, match="not one character between fields"):
            TableSource.model_validate({**BLOCK, "path": "x.csv", "delimiter": delimiter})
    with pytest.raises(ConfigError, match="is parquet, which has no quoting and no delimiter"):
        TableSource.model_validate({**BLOCK, "path": "x.parquet", "quoting": "none"}).find_format()


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz", "x.json", "x.json.gz", "x.ndjson", "gz.csv"])
def test_gzip_and_json_give_the_same_rows(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    text = {"csv": _lines(RECORDS), "json": json.dumps(RECORDS, indent=1)}.get(name.split(".")[1], lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if "gz" in name else text.encode())
    rows, rejects = _import(path)
    assert sorted(row[1:] for row in rows) == sorted((r["q"], r["t"], r["g"]) for r in RECORDS)
    assert not rejects


def test_json_array_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text(" [" + " ,\n".join([*map(json.dumps, RECORDS), "3"]) + "\n] \n")
    for size in (1, 7, 64, 10_000):
        monkeypatch.setattr(json_files, "JSON_CHARS", max(size, 2))
        rows, rejects = _import(path)
        assert len(rows) == 12 and rejects == {"not_an_object": 1}
    for broken, message in (("[{}, {", "breaks off"), ("[{}] {}", "goes on after"), ("[{} {}]", "has no ,")):
        path.write_text(broken)
        with pytest.raises(DamagedInputError, match=message):
            _import(path)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_folder_of_parts_is_one_table(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for number in range(3):
        records, path = RECORDS[number * 4 : number * 4 + 4], folder / f"part-{number}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        else:
            text = _lines(records).encode()
            path.write_bytes(gzip.compress(text) if ending == "csv.gz" else text)
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").touch()
    rows, rejects = _import(folder)
    assert len({row[0] for row in rows}) == 12 and not rejects
    assert f"ads.log.part-1.{ending}.{1 if ending == 'parquet' else 2}" in {row[0] for row in rows}
    assert not caplog.messages
    for name in ("_clicks.csv", ".clicks.csv"):
        (folder / name).touch()
    assert len(_import(folder)[0]) == 12
    assert caplog.messages == [
        f"2 entries of {folder} are not read: .clicks.csv, _clicks.csv; names of parts begin with neither . "
        "nor _: rename those that are"
    ]
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match="notes.txt is not .* move it elsewhere"):
        _import(folder)


def test_gzip_bombs_and_damage_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv.gz"
    monkeypatch.setattr(gzip_text, "MAX_UNPACKED_BYTES", 2**20)
    path.write_bytes(gzip.compress(_lines(RECORDS).encode() + b" " * 2**22))
    with pytest.raises(DataRefusedError, match="x.csv.gz unpacks to over .* a decompression bomb"):
        _import(path)
    path.write_bytes(gzip.compress(_lines(RECORDS * 100).encode())[:-40])
    with pytest.raises(DamagedInputError, match="x.csv.gz cannot be read"):
        _import(path)


def test_weight_that_float32_loses_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("q,t,g,w\na,b,1,1e-60\nc,d,1,1e300\n" + "e,f,0,0.1\ng,h,0,0\n" * 8)
    rows, rejects = _import(path, columns={**BLOCK["columns"], "weight": "w"})
    assert len(rows) == 16 and rejects == {"bad_weight": 2}
    with pytest.raises(ValueError, match="weight is 1e-60, which float32 makes 0"):
        TableSource.model_validate(
            {**BLOCK, "path": path, "constants": {**BLOCK["constants"], "weight": 1e-60}}
        )


def test_flags_and_whole_fractions_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("q,t,g\na,b,1.0\nc,d,True\ne,f,false\n")
    assert [row[3] for row in _import(path)[0]] == [1, 1, 0]
