"""Writer of contract rows: whole files, published together."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.tasks import Task
from pipeline.data import writer
from pipeline.data.reader import find_partitions, read_partition
from pipeline.data.writer import StagedRows, write_partition, write_tables
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RelevanceError
from pipeline.schema import ROW_SCHEMA
from tests.support.imported import file_names, imported


def _rows(*row_ids: str, **changes: pa.Array) -> pa.Table:
    num_rows = len(row_ids)
    columns = {"label": pa.array([1] * num_rows), "row_id": pa.array(row_ids, pa.large_string())}
    columns |= {name: pa.array(["x"] * num_rows) for name in ("query", "ad_title", "market")}
    return pa.table(columns | changes)


def test_written_partition_has_exactly_the_contract_schema(tmp_path: Path) -> None:
    write_partition(_rows("a", "b"), tmp_path / "part-0.parquet")
    with pq.ParquetFile(tmp_path / "part-0.parquet") as file:
        assert file.schema_arrow.remove_metadata() == ROW_SCHEMA
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    table = read_partition(tmp_path / "part-0.parquet")
    assert table["row_id"].to_pylist() == ["a", "b"]
    assert table["ad_description"].null_count == table["weight"].null_count == 2


def test_page_checksum_detects_a_flipped_byte(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    write_partition(_rows(*(f"row-{i}" for i in range(500))), path)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match="CRC checksum verification failed.*write it again"):
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
def test_rows_outside_the_contract_leave_the_old_file(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "part-0.parquet"
    write_partition(_rows("old"), path)
    with pytest.raises(DataRefusedError, match=message):
        write_partition(table, path)
    assert read_partition(path)["row_id"].to_pylist() == ["old"]
    assert file_names(tmp_path) == ["part-0.parquet"]


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield _rows("a")
        raise DataRefusedError("half way")

    with pytest.raises(DataRefusedError, match="half way"):
        write_tables(tables(), tmp_path / "part-0.parquet")
    assert not file_names(tmp_path)


def _publish(out_dir: Path, tables: dict[str, list[pa.Table]], stem: str = "part") -> dict[str, int]:
    with StagedRows(out_dir, stem) as staged:
        for task, parts in tables.items():
            for table in parts:
                staged.write(task, table)
        return staged.publish()


def test_rows_outside_the_contract_publish_no_task(tmp_path: Path) -> None:
    assert _publish(tmp_path, {"one": [_rows("a"), _rows("b")], "none": [_rows()]}) == {"one": 2, "none": 0}
    with pytest.raises(DataRefusedError):
        _publish(tmp_path, {"one": [_rows("new")], "two": [_rows("c").drop_columns("query")]})
    assert file_names(tmp_path) == ["catalogue.json", "task=one/part-0.parquet"]
    assert read_partition(imported(tmp_path, "task=one/part-0.parquet"))["row_id"].to_pylist() == ["a", "b"]


def _published(root: Path) -> dict[str, list[str]] | str:
    """Return the published row ids by task as a reader finds them, or the refusal."""
    tasks = [
        Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
        for name in ("one", "two")
    ]
    try:
        partitions = find_partitions(root, tasks)
    except RelevanceError as error:
        return str(error)
    return {
        task: [row_id for path in paths for row_id in read_partition(path)["row_id"].to_pylist()]
        for task, paths in partitions.items()
    }


def _fail_call(number: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Make the change of a folder or file of this number fail; return the list that counts the changes."""
    calls: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, "no space left on device")
            return call(*arguments, **settings)

        return run

    for name in ("replace", "rename", "unlink", "mkdir", "fsync", "link"):
        patch.setattr(os, name, counted(name, getattr(os, name)))
    return calls


def test_tasks_are_published_together_or_not_at_all(tmp_path: Path) -> None:
    old, new = {"one": ["a"], "two": ["b"]}, {"one": ["c"], "two": ["d"]}
    seen = []
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        _publish(folder, {task: [_rows(*ids)] for task, ids in old.items()})
        with StagedRows(folder) as staged:
            for task, ids in new.items():
                staged.write(task, _rows(*ids))
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(OSError):
                calls = _fail_call(number, patch)
                staged.publish()
        seen.append(_published(folder))
        _publish(folder, {task: [_rows(*ids)] for task, ids in new.items()})
        assert _published(folder) == new, f"published again after failure {number}"
        if len(calls) < number:
            break
    assert not [rows for rows in seen if rows not in (old, new) and "same import again" not in rows]
    assert seen[0] == old and seen[-1] == new and len(seen) > 8


def test_row_groups_have_a_fixed_size_and_sorted_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(writer, "ROWS_PER_PARTITION", 8)
    queries = ["e", "d", "c", "b", "a", "z", "y", "x", "w", "k", "j"]
    table = _rows(*(f"r{n}" for n in range(11)), query=pa.array(queries))
    assert _publish(tmp_path, {"one": [table.slice(0, 3), table.slice(3, 7), table.slice(10)]}) == {"one": 11}
    groups = []
    for name in ("part-0", "part-1"):
        with pq.ParquetFile(
            imported(tmp_path, f"task=one/{name}.parquet"), page_checksum_verification=True
        ) as file:
            groups += [file.read_row_group(i)["query"].to_pylist() for i in range(file.num_row_groups)]
            column = file.metadata.row_group(0).column(1)
            assert (
                column.compression == "ZSTD"
                and column.is_stats_set
                and column.statistics.min == groups[-file.num_row_groups][0]
            )
            assert [order.column_index for order in file.metadata.row_group(0).sorting_columns] == [1, 0]
    assert all(group == sorted(group) and len(group) <= 4 for group in groups)
    assert sorted(query for group in groups for query in group) == sorted(queries)


def test_long_texts_make_smaller_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BYTES_PER_GROUP", 10_000)
    long = _rows("a", "b", ad_description=pa.array(["x" * 6_000] * 2))
    _publish(tmp_path, {"one": [long, long, _rows("c")]})
    with pq.ParquetFile(imported(tmp_path, "task=one/part-0.parquet")) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 1]


def test_smaller_import_removes_surplus_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_GROUP", 1)
    monkeypatch.setattr(writer, "ROWS_PER_PARTITION", 1)
    _publish(tmp_path, {"one": [_rows("a", "b", "c")]})
    _publish(tmp_path, {"one": [_rows("x")]}, "part-2")
    _publish(tmp_path, {"one": [_rows("d")]})
    assert file_names(tmp_path / "task=one") == ["part-0.parquet", "part-2-0.parquet"]


def test_memory_is_bounded_by_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_GROUP", 1_000)
    sizes = []
    with StagedRows(tmp_path) as staged:
        for part in range(60):
            staged.write("one", _rows(*(f"{part}-{n}" for n in range(500))))
            sizes.append(pa.total_allocated_bytes())
        assert staged.publish() == {"one": 30_000}
    assert max(sizes[40:]) < 3 * max(sizes[:10])


def test_full_disk_leaves_no_staged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="disk full"), StagedRows(tmp_path / "data") as staged:
        staged.write("one", _rows("a"))
        monkeypatch.setattr(writer, "ROWS_PER_GROUP", 1)
        staged.write("one", _rows("b", "c"))
        monkeypatch.setattr(writer, "sync_file", fail)
        staged.publish()
    assert not list((tmp_path / "data").iterdir())


def test_task_name_cannot_escape_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a valid name"):
        _publish(tmp_path, {"../../x": [_rows("a")]})


def test_output_folder_that_is_a_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        _publish(tmp_path / "out", {"one": [_rows("a")]})


def test_progress_counts_written_rows_and_restarts_after_discard(tmp_path: Path) -> None:
    class Bar:
        def update(self, done: int, note: str = "", total: int | None = None) -> None:
            updates.append(done)

    updates: list[int] = []
    with StagedRows(tmp_path / "data", bar=Bar()) as staged:
        staged.write("a", _rows("a", "b", "c"))
        staged.write("b", _rows("d", "e"))
        staged.discard_rows()
        staged.write("a", _rows("a", "b", "c", "d"))
    assert updates == [0, 3, 5, 4]
