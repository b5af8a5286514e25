"""Tables are written by suffix, completely or not at all."""

import csv
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.scoring.table_files import check_new_file, open_table_writer

SCHEMA = pa.schema([("text", pa.string()), ("number", pa.float64()), ("hash", pa.binary(2))])
TEXTS = ['a "quoted", text', "two\nlines", "é中🙂", "", None]
TABLE = pa.table([TEXTS, [0.1, 1 / 3, 1.0, 2.0, None], [b"\x00\xff"] * 4 + [None]], schema=SCHEMA)


def write(path: Path) -> None:
    with open_table_writer(path, SCHEMA) as append:
        append(TABLE.slice(0, 2))
        append(TABLE.slice(2))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_has_every_text_unchanged(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"t{suffix}")
    content = (tmp_path / f"t{suffix}").read_bytes()
    text = (gzip.decompress(content) if suffix == ".csv.gz" else content).decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["text", "number", "hash"]
    assert [row[0] for row in rows] == [*TEXTS[:4], ""]
    assert [row[1] for row in rows] == ["0.1", "0.3333333333333333", "1", "2", ""]
    assert [row[2] for row in rows] == ["00ff"] * 4 + [""] and text.endswith("\n,,\n")


def test_parquet_has_the_table_unchanged(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(TABLE)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_error_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ZeroDivisionError), open_table_writer(tmp_path / f"t{suffix}", SCHEMA) as append:
        append(TABLE)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("t.xlsx", "kind of file unknown"), (".csv", "kind of file unknown"), ("there.csv", "exists already")],
)
def test_unusable_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.csv").touch()
    with pytest.raises(ConfigError, match=message):
        check_new_file(tmp_path / name)


def test_bucket_is_no_file() -> None:
    with pytest.raises(ConfigError, match="file is not local"):
        check_new_file(Path("s3://bucket/labels.csv"))
