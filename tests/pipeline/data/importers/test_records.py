"""Parquet rows as records of text."""

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.importers import records
from pipeline.data.importers.records import read_parquet
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError


def _write(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_values_are_text_and_rows_are_numbered_from_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "READ_ROWS", 2)
    path = _write(
        tmp_path / "x.parquet",
        text=pa.array(["a", None, "c"]),
        category=pa.array(["x", "y", None]).dictionary_encode(),
        number=pa.array([1, 2, None]),
        float=pa.array([1.0, 0.5, None]),
        flag=pa.array([True, False, None]),
        price=pa.array([Decimal("1.50"), None, None]),
        id=pa.array([Decimal("9" * 38), None, Decimal(7)], pa.decimal128(38, 0)),
    )
    names = ["text", "category", "number", "float", "flag", "price", "id"]
    rows = list(read_parquet(path, names, ["absent"]))
    assert [line.number for line in rows] == [1, 2, 3]
    assert [list(line.fields.values()) for line in rows] == [
        ["a", "x", "1", "1", "true", "1.50", "9" * 38],
        [None, "y", "2", "0.5", "false", None, None],
        ["c", None, None, None, None, None, "7"],
    ]


def test_invalid_utf_8_is_a_defect_of_its_row(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "x.parquet",
        text=pa.array([b"a", b"\xff"], pa.binary()).view(pa.string()),
        raw=pa.array([b"x", b"y"]),
    )
    assert [
        (line.number, line.defect, line.fields["text"]) for line in read_parquet(path, ["text", "raw"])
    ] == [
        (1, None, "a"),
        (2, "bad_encoding", "\\xff"),
    ]


def test_unfit_parquet_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.parquet", a=pa.array([[1]]))
    with pytest.raises(DataRefusedError, match="neither text nor number: a .list"):
        list(read_parquet(path, ["a"]))
    with pytest.raises(DataRefusedError, match="has no column b, only a"):
        list(read_parquet(path, ["b"]))
    with pytest.raises(ConfigError, match="is not a file"):
        list(read_parquet(tmp_path, ["a"]))
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DamagedInputError, match="not whole parquet"):
        list(read_parquet(tmp_path / "x.csv", ["a"]))
