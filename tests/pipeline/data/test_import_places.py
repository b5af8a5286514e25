"""Imports into a bucket: published whole or not at all, as in a folder."""

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.data import import_places
from pipeline.data.import_places import open_import_place
from pipeline.data.reader import read_rows
from pipeline.data.row_files import find_row_files, open_copy
from pipeline.data.staging import StagingFolder, list_imported
from pipeline.data.writer import StagedRows
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RetryableError
from pipeline.storage import lease
from pipeline.storage.lease import Lease
from pipeline.storage.object_store import Bucket, open_bucket
from tests.support.imported import equal_rows, publish_tables

TASKS = [
    Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
    for name in ("one", "two")
]
WRITES = ("put_file", "put", "put_if_absent", "delete")  # requests that change a bucket


class KilledError(BaseException):
    """End of a process at a request."""


@pytest.fixture
def bucket(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return an empty prefix of a bucket; staged files are below `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return open_bucket(f"s3://labels/{tmp_path.name}")


def publish(bucket: Bucket, prefix: str, stem: str = "part", **num_rows: int) -> None:
    """Publish rows of some tasks, and one file of rejects."""
    with StagedRows(bucket.location, stem) as staged:
        for task, number in num_rows.items():
            staged.write(task, equal_rows(number, f"{prefix}-{task}-"))
        (staged.dir / "quarantine").mkdir()
        (staged.dir / "quarantine" / f"{stem}.parquet").write_text(prefix)
        staged.publish([f"quarantine/{stem}.parquet"], tasks=["one", "two"])


def read(bucket: Bucket) -> list[str]:
    """Return the first part of the row ids in a bucket."""
    ids: list[str] = []
    for files in find_row_files(bucket.location, TASKS).by_task.values():
        for file in files:
            with open_copy(file) as (opened, _):
                ids += pa.concat_tables(read_rows(opened, file.url))["row_id"].to_pylist()
    return sorted({row_id.partition("-")[0] for row_id in ids})


def keys(bucket: Bucket) -> list[str]:
    """Return all keys but those of the lock."""
    return [entry.key for entry in bucket.list("") if ".lock/" not in entry.key]


def test_import_replaces_its_files_and_keeps_others(bucket: Bucket) -> None:
    publish(bucket, "other", "other", two=1)
    publish(bucket, "old", one=3, two=5)
    publish(bucket, "new", one=4)
    assert read(bucket) == ["new", "other"] and len(keys(bucket)) == 5
    assert bucket.get("quarantine/part.parquet") == b"new"
    assert [name.partition(".")[0] for name in list_imported(bucket.location)] == [
        "quarantine/other",
        "quarantine/part",
        "task=one/part-0",
        "task=two/other-0",
    ]


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that ends the process at the n-th request that changes a bucket; 0: never."""
    number, count = [0], itertools.count(1)
    monkeypatch.setattr(lease, "has_ended", lambda *_: True)  # of the process that holds a lease

    def kill(n: int) -> None:
        nonlocal count
        number[0], count = n, itertools.count(1)

    for name in WRITES:
        request = getattr(Bucket, name)

        def counted(bucket: Bucket, *arguments: Any, request: Any = request) -> Any:
            if number[0] and next(count) >= number[0]:
                raise KilledError
            return request(bucket, *arguments)

        monkeypatch.setattr(Bucket, name, counted)
    return kill


def test_import_killed_at_any_request_is_whole_or_absent(
    bucket: Bucket, kill_at: Callable[[int], None]
) -> None:
    publish(bucket, "other", "other", two=1)
    seen = []
    for n in itertools.count(2, 4):
        publish(bucket, "old", one=3, two=5)
        num_keys = len(keys(bucket))
        kill_at(n)
        with suppress(KilledError):
            publish(bucket, "new", one=4, two=2)
            break
        kill_at(0)
        seen.append(read(bucket))
        publish(bucket, "new", one=4, two=2)
        assert read(bucket) == ["new", "other"] and len(keys(bucket)) == num_keys
    assert [read for read, _ in itertools.groupby(seen)] == [["old", "other"], ["new", "other"]]
    assert len(seen) >= 3


def test_objects_of_an_unfinished_import_are_named(
    bucket: Bucket, kill_at: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    publish(bucket, "old", one=3)
    kill_at(5)
    with pytest.raises(KilledError):
        publish(bucket, "new", one=4, two=2)
    with caplog.at_level(logging.WARNING):
        skipped = find_row_files(bucket.location, TASKS).skipped
    assert "objects of s3://labels/" in skipped and "are not published: task=one/part-0." in skipped
    assert skipped in caplog.text


def test_catalogue_replaced_after_the_listing_is_read_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bucket, "old", one=3)
    list_objects, is_first = Bucket.list, [True]

    def racing(store: Bucket, folder: str) -> Iterator[Any]:
        entries = [*list_objects(store, folder)]
        if store is bucket and is_first.pop():
            is_first.append(False)
            monkeypatch.setattr(Bucket, "list", list_objects)
            publish(bucket, "new", one=4)
        return iter(entries)

    monkeypatch.setattr(Bucket, "list", racing)
    assert read(bucket) == ["new"]


def test_bucket_that_is_not_as_listed_is_refused(bucket: Bucket) -> None:
    publish(bucket, "old", one=3)
    bucket.put("task=one/mine.parquet", b"x")
    with pytest.raises(DataRefusedError, match="files are not in the catalogue: task=one/mine.parquet"):
        read(bucket)
    bucket.delete("task=one/mine.parquet")
    bucket.delete(next(key for key in keys(bucket) if key.startswith("task=one")))
    with pytest.raises(DamagedInputError, match="files of the catalogue are missing"):
        read(bucket)


def test_objects_without_a_catalogue_are_listed_by_the_first_import(bucket: Bucket, tmp_path: Path) -> None:
    publish_tables(tmp_path / "mine", "mine", two=equal_rows(2, "mine-"))
    [path] = (tmp_path / "mine").rglob("mine-*.parquet")
    bucket.put("task=two/mine.parquet", path.read_bytes())
    publish(bucket, "new", one=4)
    entries = open_import_place(bucket.location).read_catalogue()
    assert entries is not None and entries["task=two/mine.parquet"].rows == 2
    assert read(bucket) == ["mine", "new"]


def test_folder_of_sources_replaces_the_files_of_earlier_ones(bucket: Bucket) -> None:
    earlier: list[str] = []
    for prefix, stems in (("old", "ab"), ("new", "bc")):
        with StagingFolder(bucket.location, "sources") as folder:
            for stem in stems:
                publish_tables(folder.dir, stem, one=equal_rows(2, f"{prefix}-{stem}"))
            files = list_imported(folder.dir)
            folder.publish_folder(earlier)
        earlier = files
    assert list_imported(bucket.location) == earlier and read(bucket) == ["new"]


def test_second_import_waits_for_the_first_and_is_told_to_retry(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = open_bucket(f"{bucket.location}/.catalogue.json.lock")
    monkeypatch.setattr(import_places, "Lease", lambda store: Lease(store, duration_s=1.0))
    with (
        Lease(lock, "first", duration_s=0.4),
        pytest.raises(RetryableError, match="leased by process .* run first; wait for that process"),
    ):
        publish(bucket, "new", one=4)
    publish(bucket, "new", one=4)
    assert read(bucket) == ["new"]


def test_wrong_bucket_is_refused_before_the_work(bucket: Bucket) -> None:
    with (
        pytest.raises(ConfigError, match="bucket does not exist: s3://nowhere/x"),
        StagedRows("s3://nowhere/x"),
    ):
        raise AssertionError("the work began")


def test_staged_files_are_below_a_folder_of_the_user(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StagedRows(bucket.location) as staged:
        assert staged.dir.parent.parent == tmp_path and staged.dir.parent.stat().st_mode & 0o777 == 0o700
    assert not list(staged.dir.parent.iterdir())
    staged.dir.parent.rmdir()
    staged.dir.parent.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is of another user; set TMPDIR"):
        StagedRows(bucket.location)
