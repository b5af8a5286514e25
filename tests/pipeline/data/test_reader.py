"""Reader of contract rows: unfit files and folders are refused with path, reason and exit code."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.tasks import Task
from pipeline.data.reader import data_digest, find_partitions, open_partition, read_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RelevanceError
from pipeline.schema import ROW_SCHEMA

TASKS = [
    Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
    for name in ("search", "shop")
]


def contract_rows(count: int = 200) -> pa.Table:
    texts = {
        "query": "shoes",
        "ad_title": "Größe 靴",
        "ad_description": None,
        "ad_keyword": "k",
        "landing_page": None,
        "market": "us",
    }
    return pa.Table.from_pylist(
        [{"row_id": f"r{n}", **texts, "label": n % 2, "weight": None} for n in range(count)], ROW_SCHEMA
    )


def write_partition(path: Path, table: pa.Table | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(contract_rows() if table is None else table, path, write_page_checksum=True)
    return path


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    table = read_partition(write_partition(tmp_path / "task=search" / "a.parquet"))
    assert table.to_pylist() == contract_rows().to_pylist()
    assert table.schema.names == ROW_SCHEMA.names and table.schema.types == ROW_SCHEMA.types


def test_hive_folder_name_adds_no_column(tmp_path: Path) -> None:
    assert "task" not in read_partition(write_partition(tmp_path / "task=search" / "a.parquet")).column_names


def test_partitions_are_found_by_task_in_order(tmp_path: Path) -> None:
    for name in (
        "task=shop/b.parquet",
        "task=shop/a.parquet",
        "task=search/z.parquet",
        "task=shop/.hidden.parquet",
        "other/x.parquet",
    ):
        write_partition(tmp_path / name, contract_rows(1))
    (tmp_path / "task=shop" / "notes.txt").write_text("not rows")
    partitions = find_partitions(tmp_path, TASKS)
    assert {task: [path.name for path in paths] for task, paths in partitions.items()} == {
        "search": ["z.parquet"],
        "shop": ["a.parquet", "b.parquet"],
    }


def absent(root: Path) -> None:
    root.rmdir()


def file_instead(root: Path) -> None:
    root.rmdir()
    root.write_text("")


def empty(root: Path) -> None:
    pass


def empty_task(root: Path) -> None:
    (root / "task=search").mkdir()


def no_parquet(root: Path) -> None:
    (root / "task=search").mkdir()
    (root / "task=search" / "rows.csv").write_text("query,ad_title\n")


def no_hive(root: Path) -> None:
    write_partition(root / "rows.parquet")


def unknown_task(root: Path) -> None:
    write_partition(root / "task=serach" / "a.parquet")


def hostile_task(root: Path) -> None:
    write_partition(root / "task=..%2f" / "a.parquet")


FOLDERS: list[tuple[Callable[[Path], None], type[RelevanceError], int, str]] = [
    (
        absent,
        ConfigError,
        2,
        r"is not a folder; point the config at a folder that holds task=<name>/\*\.parquet",
    ),
    (file_instead, ConfigError, 2, "is not a folder"),
    (empty, DataRefusedError, 1, "holds no task=<name>/\\*.parquet file; write rows with `relevance import`"),
    (empty_task, DataRefusedError, 1, "holds no task="),
    (no_parquet, DataRefusedError, 1, "holds no task="),
    (no_hive, DataRefusedError, 1, "holds no task="),
    (unknown_task, ConfigError, 2, "task 'serach' in .* is not configured; configured: search, shop"),
    (hostile_task, ConfigError, 2, "is not configured"),
]


@pytest.mark.parametrize(
    ("prepare", "kind", "code", "message"), FOLDERS, ids=[f[0].__name__ for f in FOLDERS]
)
def test_folder_without_rows_is_refused(
    tmp_path: Path, prepare: Callable[[Path], None], kind: type[RelevanceError], code: int, message: str
) -> None:
    root = tmp_path / "rows"
    root.mkdir()
    prepare(root)
    with pytest.raises(kind, match=message) as caught:
        find_partitions(root, TASKS)
    assert caught.value.exit_code == code and str(root) in str(caught.value)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[:2_000]),
    "last byte gone": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "no parquet": lambda path: path.write_text("row_id,query\n1,shoes\n" * 50),
    "a folder of that name": as_folder,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to(path.parent / "nothing")),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_incomplete_parquet_is_damaged_input(tmp_path: Path, damage: str) -> None:
    path = write_partition(tmp_path / "task=search" / "x.parquet")
    DAMAGE[damage](path)
    with pytest.raises(DamagedInputError, match="x.parquet is not (whole parquet|a file)") as caught:
        read_partition(path)
    assert caught.value.exit_code == 4
    assert path.is_file() or "is not a file; replace it by a parquet file or remove it" in str(caught.value)
    with pytest.raises(DamagedInputError):
        open_partition(path)


def test_damage_never_changes_rows_silently(tmp_path: Path) -> None:
    path = write_partition(tmp_path / "x.parquet")
    whole, expected, draw = path.read_bytes(), contract_rows().to_pylist(), random.Random(0)
    refused = 0
    for number in range(300):
        content = bytearray(whole)
        if number % 3 == 0:
            del content[draw.randrange(len(whole)) :]
        else:
            content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            table = read_partition(path)
        except (DamagedInputError, DataRefusedError):
            refused += 1
        else:  # bits that carry nothing, such as the writer's name
            assert table.to_pylist() == expected
    assert refused > 200


def with_column(name: str, values: pa.Array) -> pa.Table:
    table = contract_rows(3)
    return table.set_column(table.column_names.index(name), name, values)


OTHER_SCHEMAS: dict[str, tuple[pa.Table, str]] = {
    "missing column": (contract_rows(3).drop_columns(["query"]), "column query is missing"),
    "two missing": (
        contract_rows(3).drop_columns(["query", "market", "label"]),
        "column query is missing; column market is missing$",
    ),
    "extra column": (
        contract_rows(3).append_column("colour", pa.array(["red"] * 3)),
        "column colour is not in the contract",
    ),
    "wrong type": (
        with_column("label", pa.array(["0", "1", "1"])),
        "column label is string, the contract says int32",
    ),
    "fractions as ids": (
        with_column("row_id", pa.array([0.5, 1, 1])),
        "column row_id is double, the contract says string; cast it in the writer",
    ),
    "repeated column": (
        contract_rows(3).append_column("query", pa.array(["red"] * 3)),
        "column query occurs 2 times; keep one",
    ),
}


@pytest.mark.parametrize("case", OTHER_SCHEMAS)
def test_another_schema_is_refused_with_each_difference(tmp_path: Path, case: str) -> None:
    table, message = OTHER_SCHEMAS[case]
    path = write_partition(tmp_path / "x.parquet", table)
    with pytest.raises(
        DataRefusedError, match=f"x.parquet does not follow the row contract: .*{message}"
    ) as caught:
        read_partition(path)
    assert caught.value.exit_code == 1


def test_invalid_utf_8_is_damaged_input(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xff\xfe", b"\xc3("], pa.binary()).view(pa.string())
    path = write_partition(tmp_path / "x.parquet", with_column("query", broken))
    with pytest.raises(DamagedInputError, match="x.parquet is damaged"):
        read_partition(path)


def test_empty_partition_is_read(tmp_path: Path) -> None:
    assert read_partition(write_partition(tmp_path / "x.parquet", contract_rows(0))).num_rows == 0


def test_data_digest_depends_on_bytes_and_tasks_only(tmp_path: Path) -> None:
    one, two = (
        write_partition(tmp_path / "a.parquet", contract_rows(1)),
        write_partition(tmp_path / "b.parquet", contract_rows(2)),
    )
    digest = data_digest({"search": [one, two]})
    assert data_digest({"search": [two, one]}) == digest
    renamed = one.rename(tmp_path / "c.parquet")
    assert data_digest({"search": [renamed, two]}) == digest
    assert data_digest({"shop": [renamed, two]}) != digest
    assert data_digest({"search": [renamed], "shop": [two]}) != digest
    write_partition(renamed, contract_rows(3))
    assert data_digest({"search": [renamed, two]}) != digest
