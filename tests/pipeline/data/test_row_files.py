"""Files of rows in a bucket: one version of each object is read, whole or in part."""

import io
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.files import bytes_sha256
from pipeline.config.loading import build_config
from pipeline.data.parquet_batches import BatchLimits
from pipeline.data.reader import read_partition, read_rows
from pipeline.data.row_files import RowFile, copy_object, find_row_files, open_copy, open_in_place
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RetryableError
from pipeline.schema import ROW_SCHEMA
from pipeline.storage import object_store
from pipeline.storage.object_store import Bucket, Store, StoreEntry, open_store
from tests.support.planted import planted_config, planted_rows, write_rows

KEY = "task=two/part-0.parquet"
OPENS: tuple[Callable[[RowFile], AbstractContextManager[Any]], ...] = (open_copy, open_in_place)


@pytest.fixture
def tasks(tmp_path: Path) -> Any:
    """Return the planted tasks."""
    return build_config(planted_config(tmp_path, "nowhere"), "test").tasks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a parquet file of rows."""
    write_rows(planted_rows("two", 300, 1), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.fixture
def store(tmp_path: Path, s3: str, path: Path) -> Store:
    """Return a bucket's prefix with that file as an object."""
    store = open_store(f"s3://labels/{tmp_path.name}")
    store.put(KEY, path.read_bytes())
    return store


@pytest.fixture
def file(store: Store, tasks: Any) -> RowFile:
    """Return the object as it was listed."""
    [file] = find_row_files(store.location, tasks).by_task["two"]
    return file


def test_object_is_read_as_the_file_it_was(file: RowFile, path: Path, store: Store) -> None:
    assert (file.url, file.is_object) == (f"{store.location}/{KEY}", True)
    copy = io.BytesIO()
    assert copy_object(file, copy) == bytes_sha256(path.read_bytes()) == bytes_sha256(copy.getvalue())
    with open_copy(file) as (opened, sha256):
        [rows] = read_rows(opened, file.url)
    assert rows.equals(read_partition(path)) and sha256 == bytes_sha256(path.read_bytes())
    with open_in_place(file) as opened:
        assert next(read_rows(opened, file.url)).equals(rows)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the bytes of each request for a part of an object."""
    lengths, get_range = list[int](), Bucket.get_range

    def counted(bucket: Bucket, key: str, version: str, start: int, end: int) -> bytes:
        lengths.append(end - start)
        return get_range(bucket, key, version, start, end)

    monkeypatch.setattr(Bucket, "get_range", counted)
    return lengths


def test_object_is_copied_by_ranges(
    file: RowFile, path: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.row_files.MAX_RANGE_BYTES", 1_000)
    copy_object(file, io.BytesIO())
    assert max(lengths) <= 1_000 and sum(lengths) == path.stat().st_size


def test_part_of_an_object_is_requested_in_place(
    store: Store, tasks: Any, lengths: list[int], tmp_path: Path
) -> None:
    texts = random.Random(17)
    rows = [{**row, "ad_description": texts.randbytes(100).hex()} for row in planted_rows("two", 30_000, 1)]
    table = pa.Table.from_pylist(rows, ROW_SCHEMA)
    pq.write_table(table, tmp_path / "long.parquet", row_group_size=2_000)
    store.put(KEY, (tmp_path / "long.parquet").read_bytes())
    [file] = find_row_files(store.location, tasks).by_task["two"]
    with open_in_place(file) as opened:
        first = next(read_rows(opened, file.url, limits=BatchLimits(100)))
    assert first.to_pylist() == table.slice(0, first.num_rows).to_pylist()
    assert 0 < sum(lengths) < file.size / 2


def test_replaced_or_deleted_object_is_retried(file: RowFile, store: Store, path: Path) -> None:
    key = file.content_key()
    store.put(KEY, path.read_bytes() + b"x")
    reads = (partial(copy_object, file, io.BytesIO()), *(opens(file).__enter__ for opens in OPENS))
    for read in reads:
        with pytest.raises(RetryableError, match=f"{file.url} changed while it was read"):
            read()
    store.delete(KEY)
    with pytest.raises(RetryableError, match=f"{file.url} was deleted while it was read"):
        copy_object(file, io.BytesIO())
    assert file.content_key() == key


def test_another_content_under_the_same_version_is_not_taken(file: RowFile) -> None:
    with pytest.raises(RetryableError, match="changed while it was read"):
        copy_object(file, io.BytesIO(), "0" * 64)
    listed = RowFile(file.place, file.name, file.version, file.size, "0" * 64)
    with pytest.raises(DamagedInputError, match="files differ from the catalogue"):
        copy_object(listed, io.BytesIO())
    assert listed.content_key() != file.content_key()


def test_object_that_is_not_parquet_is_damaged(store: Store, tasks: Any) -> None:
    store.put(KEY, b"row_id,query\n")
    [file] = find_row_files(store.location, tasks).by_task["two"]
    for opens in OPENS:
        with pytest.raises(DamagedInputError, match=f"{file.url} is not whole parquet"):
            opens(file).__enter__()


def test_place_without_rows_is_refused(s3: str, store: Store, tasks: Any) -> None:
    with pytest.raises(DataRefusedError, match=r"s3://labels/none holds no task=<name>/\*.parquet file"):
        find_row_files("s3://labels/none", tasks)
    with pytest.raises(ConfigError, match="bucket does not exist: s3://nowhere/x"):
        find_row_files("s3://nowhere/x", tasks)
    store.put("task=other/x.parquet", b"")
    with pytest.raises(ConfigError, match="task 'other' in s3://.* is not configured"):
        find_row_files(store.location, tasks)


def test_object_without_a_version_is_refused(
    store: Store, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store.Bucket, "list", lambda *_: iter([StoreEntry(KEY, 0.0, 1, "")]))
    with pytest.raises(ConfigError, match="object has no ETag"):
        find_row_files(store.location, tasks)


def test_files_and_objects_have_the_same_names(store: Store, tasks: Any, tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / KEY).parent.mkdir(parents=True)
    path.rename(folder / KEY)
    for place in (folder, store.location):
        (folder / "notes.txt").write_text("x")
        store.put("notes.txt", b"x")
        found = find_row_files(place, tasks)
        assert [file.name for file in found.by_task["two"]] == [KEY]
        assert f"1 entries of {place} are not read: notes.txt" in found.skipped
