"""Input files of scoring: those that a catalogue lists, at any depth, under names that outlive an import."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.files import file_sha256
from pipeline.config.loading import build_config
from pipeline.data import row_files
from pipeline.data.reader import read_partition, read_rows
from pipeline.data.writer import StagedRows
from pipeline.errors import DamagedInputError, DataRefusedError, RetryableError
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.input_cache import InputCache
from pipeline.scoring.inputs import find_inputs, open_input
from pipeline.scoring.work_units import WorkUnit, plan_units, read_unit
from pipeline.storage.object_store import StoreEntry
from tests.support.imported import imported
from tests.support.planted import planted_config, planted_rows, write_rows


class _Bucket:
    """Objects that are the files of a folder."""

    location = "s3://rows"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.num_bytes = 0  # read so far

    def list(self, folder: str) -> Iterator[StoreEntry]:
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            yield StoreEntry(str(path.relative_to(self.root)), 0.0, path.stat().st_size, "v1")

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def get_range(self, key: str, version: str, start: int, end: int) -> bytes:
        self.num_bytes += end - start
        return self.get(key)[start:end]


@pytest.fixture
def tasks(tmp_path: Path) -> Any:
    """Return the planted tasks."""
    return build_config(planted_config(tmp_path, "nowhere"), "test").tasks


@pytest.fixture
def rows_dir(tmp_path: Path) -> Path:
    """Return a folder with an import of rows of two tasks."""
    with StagedRows(tmp_path / "rows") as staged:
        for task in ("two", "three"):
            rows = planted_rows(task, 4, 1, labeled=False)
            staged.write(task, pa.Table.from_pylist(rows, ROW_SCHEMA))
        staged.publish()
    return tmp_path / "rows"


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, rows_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path | str:
    """Return the place of the rows: a folder, or a bucket of the same files."""
    if request.param == "folder":
        return rows_dir
    monkeypatch.setattr(row_files, "open_bucket", lambda url: _Bucket(rows_dir))
    return _Bucket.location


def test_units_keep_their_ids_whatever_digest_a_name_holds(
    tmp_path: Path, rows_dir: Path, tasks: Any
) -> None:
    plain = tmp_path / "plain"
    for task in ("two", "three"):
        (plain / f"task={task}").mkdir(parents=True)
        name = f"task={task}/part-0.parquet"
        shutil.copyfile(imported(rows_dir, name), plain / name)
    ids = [
        {unit.unit_id for unit in plan_units(root, tmp_path / "scores", tasks, "b")[0]}
        for root in (rows_dir, plain)
    ]
    assert ids[0] == ids[1] and len(ids[0]) == 2


def test_inputs_are_those_of_the_catalogue(
    location: Path | str, rows_dir: Path, tasks: Any, tmp_path: Path
) -> None:
    files = find_inputs(location, tasks, InputCache(tmp_path / "scores", location))
    assert {task: [file.name for file in found] for task, found in files.items()} == {
        task: [f"task={task}/part-0.parquet"] for task in ("three", "two")
    }
    path = imported(rows_dir, "task=two/part-0.parquet")
    content = path.read_bytes()
    write_rows(planted_rows("two", 2, 2, labeled=False), rows_dir / "task=two" / "mine.parquet")
    with pytest.raises(DataRefusedError, match=f"not in the catalogue: task=two/mine.parquet in {location}"):
        find_inputs(location, tasks, InputCache(tmp_path / "scores", location))
    (rows_dir / "task=two" / "mine.parquet").unlink()
    path.write_bytes(content + b"x")
    with pytest.raises(DamagedInputError, match="files differ from the catalogue"):
        find_inputs(location, tasks, InputCache(tmp_path / "scores", location))
    path.unlink()
    with pytest.raises(DamagedInputError, match="files of the catalogue are missing"):
        find_inputs(location, tasks, InputCache(tmp_path / "scores", location))


def test_object_of_another_content_than_listed_is_not_scored(
    rows_dir: Path, tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = _Bucket(rows_dir)
    monkeypatch.setattr(row_files, "open_bucket", lambda url: bucket)
    path = imported(rows_dir, "task=two/part-0.parquet")
    three, two = plan_units(bucket.location, tmp_path / "scores", tasks, "b")[0]
    content, row_ids = path.read_bytes(), read_partition(path)["row_id"].to_pylist()
    changed = content.replace(row_ids[0].encode(), row_ids[0].encode()[::-1])
    assert changed != content and len(changed) == len(content)
    path.write_bytes(changed)
    with pytest.raises(DamagedInputError, match=f"differ from the catalogue: {path.parent.name}/{path.name}"):
        list(read_unit(two))
    path.write_bytes(content)
    bucket.num_bytes = 0
    [(rows, _)] = read_unit(two)
    assert rows["row_id"].to_pylist() == row_ids and bucket.num_bytes == len(content)
    assert WorkUnit.from_json(three.to_json()) == three and three.listed_sha256


def test_nested_inputs_are_read_and_others_named(
    location: Path | str, rows_dir: Path, tasks: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (rows_dir / "catalogue.json").unlink()
    nested = rows_dir / "task=two" / "market=us"
    nested.mkdir()
    imported(rows_dir, "task=two/part-0.parquet").rename(nested / "part-0.PARQUET")
    (rows_dir / "task=two" / "more.parquet.gz").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        files = find_inputs(location, tasks, InputCache(tmp_path / "scores", location))
    assert [file.name for file in files["two"]] == ["task=two/market=us/part-0.PARQUET"]
    assert f"1 entries of {location} are not read: task=two/more.parquet.gz" in caplog.text


@pytest.mark.parametrize("is_damaged", [True, False])
def test_file_written_in_place_while_it_is_read_is_retried(tmp_path: Path, is_damaged: bool) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(planted_rows("two", 4, 1, labeled=False), path)
    content = path.read_bytes()
    with (
        pytest.raises(RetryableError, match="input changed while it was scored"),
        open_input(str(path), file_sha256(path)) as file,
    ):
        path.write_bytes(bytes(len(content)) if is_damaged else content)
        list(read_rows(file, path))


def test_damaged_file_that_does_not_change_is_not_retried(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(planted_rows("two", 4, 1, labeled=False), path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(40) + content[44:])
    with (
        pytest.raises(DamagedInputError, match="is damaged"),
        open_input(str(path), file_sha256(path)) as file,
    ):
        list(read_rows(file, path))
