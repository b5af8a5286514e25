"""Promises of pipeline/writer.py."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DataRefusedError
from pipeline.reader import read_partition
from pipeline.schema import ROW_SCHEMA
from pipeline.writer import publish_tasks, write_partition, write_tables


def _rows(*row_ids: str, **changes: pa.Array) -> pa.Table:
    num_rows = len(row_ids)
    columns = {"label": pa.array([1] * num_rows), "row_id": pa.array(row_ids, pa.large_string())}
    columns |= {name: pa.array(["x"] * num_rows) for name in ("query", "ad_title", "market")}
    return pa.table(columns | changes)


def _file_names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_written_partition_has_exactly_the_contract_schema(tmp_path: Path) -> None:
    write_partition(_rows("a", "b"), tmp_path / "part-0.parquet")
    with pq.ParquetFile(tmp_path / "part-0.parquet") as file:
        assert file.schema_arrow.remove_metadata() == ROW_SCHEMA
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    table = read_partition(tmp_path / "part-0.parquet")
    assert table["row_id"].to_pylist() == ["a", "b"]
    assert table["ad_description"].null_count == table["weight"].null_count == 2


def test_a_flipped_byte_in_a_page_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    write_partition(_rows(*(f"row-{i}" for i in range(500))), path)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(Exception, match="write it again"):
        read_partition(path)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_partition(_rows("r1", "r2"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_rows("a").drop_columns("query"), "missing columns .'query'."),
        (_rows("a").append_column("colour", [["red"]]), "unknown columns .'colour'."),
        (_rows("a", query=pa.array([None], pa.string())), "column query holds 1 nulls"),
        (_rows("a", label=pa.array(["good"])), "column label does not fit int32"),
        (_rows("a", label=pa.array([2**40])), "column label does not fit int32"),
        (_rows("a", query=pa.array([b"\xff"], pa.binary()).view(pa.string())), "not UTF-8"),
    ],
)
def test_rows_outside_the_contract_are_refused_and_the_old_file_stays(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "part-0.parquet"
    write_partition(_rows("old"), path)
    with pytest.raises(DataRefusedError, match=message):
        write_partition(table, path)
    assert read_partition(path)["row_id"].to_pylist() == ["old"]
    assert _file_names(tmp_path) == ["part-0.parquet"]


def test_a_source_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield _rows("a")
        raise DataRefusedError("half way")

    with pytest.raises(DataRefusedError, match="half way"):
        write_tables(tables(), tmp_path / "part-0.parquet")
    assert not _file_names(tmp_path)


def test_tasks_are_published_together_or_not_at_all(tmp_path: Path) -> None:
    assert publish_tasks({"one": [_rows("a"), _rows("b")], "none": [_rows()]}, tmp_path) == {"one": 2, "none": 0}
    with pytest.raises(DataRefusedError):
        publish_tasks({"one": [_rows("new")], "two": [_rows("c").drop_columns("query")]}, tmp_path)
    assert _file_names(tmp_path) == ["task=one/part-0.parquet"]
    assert read_partition(tmp_path / "task=one/part-0.parquet")["row_id"].to_pylist() == ["a", "b"]


def test_a_task_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a valid name"):
        publish_tasks({"../../x": [_rows("a")]}, tmp_path)


def test_an_output_folder_that_is_a_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        publish_tasks({"one": [_rows("a")]}, tmp_path / "out")
