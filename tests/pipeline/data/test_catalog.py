"""Catalogue of a data folder: what is listed is what is read."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.files import bytes_sha256
from pipeline.data import catalog
from pipeline.data.catalog import catalogue_lock, find_files, logical_name, published_name, read_catalogue
from pipeline.data.reader import open_partition
from pipeline.data.writer import write_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RetryableError
from pipeline.runtime import waiting
from pipeline.schema import SCHEMA_VERSION
from tests.support.imported import equal_rows, imported, publish_tables


def _listed(root: Path) -> list[tuple[str, int]]:
    return [(logical_name(path), entry.rows) for path, entry in (read_catalogue(root) or {}).items()]


def test_catalogue_describes_every_partition(tmp_path: Path) -> None:
    publish_tables(tmp_path, one=equal_rows(3), two=equal_rows(5))
    assert _listed(tmp_path) == [("task=one/part-0.parquet", 3), ("task=two/part-0.parquet", 5)]
    for path, entry in (read_catalogue(tmp_path) or {}).items():
        content = (tmp_path / path).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), bytes_sha256(content))
        assert path == published_name(logical_name(path), entry.sha256)
        assert (f"task={entry.task}", entry.schema_version) == (path.partition("/")[0], SCHEMA_VERSION)


def test_import_replaces_only_its_own_catalogue_entries(tmp_path: Path) -> None:
    publish_tables(tmp_path, one=equal_rows(3), two=equal_rows(5))
    publish_tables(tmp_path, three=equal_rows(1), two=equal_rows(6))
    publish_tables(tmp_path, "other", two=equal_rows(2, "o"))
    assert _listed(tmp_path) == [
        ("task=one/part-0.parquet", 3),
        ("task=three/part-0.parquet", 1),
        ("task=two/other-0.parquet", 2),
        ("task=two/part-0.parquet", 6),
    ]
    assert find_files(tmp_path).names == list(read_catalogue(tmp_path) or {})


def test_files_of_others_are_listed_and_kept_by_imports(tmp_path: Path) -> None:
    for name in ("one/nested=x/spark-1", "one/part-0", "two/part-0"):
        write_partition(equal_rows(4), tmp_path / f"task={name}.parquet")
    for num_rows in (2, 3):
        publish_tables(tmp_path, one=equal_rows(num_rows))
        assert sorted(_listed(tmp_path)) == [
            ("task=one/nested=x/spark-1.parquet", 4),
            ("task=one/part-0.parquet", num_rows),
            ("task=one/part-0.parquet", 4),
            ("task=two/part-0.parquet", 4),
        ]


def test_file_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    write_partition(equal_rows(2), tmp_path / "task=one" / "x.parquet")
    name = os.fsdecode(b"caf\xe9.parquet")
    (tmp_path / "task=one" / "x.parquet").rename(tmp_path / "task=one" / name)
    with pytest.raises(ConfigError, match="name of .* is not UTF-8, which parquet needs; rename the file"):
        publish_tables(tmp_path, two=equal_rows(3))
    with pytest.raises(ConfigError, match="name of .* is not UTF-8"):
        open_partition(tmp_path / "task=one" / name)


@pytest.mark.parametrize("change", ["added", "removed", "overwritten", "damaged"])
def test_folder_that_differs_from_its_catalogue_is_refused(tmp_path: Path, change: str) -> None:
    publish_tables(tmp_path, one=equal_rows(3), two=equal_rows(5))
    path = imported(tmp_path, "task=two/part-0.parquet")
    if change == "added":
        write_partition(equal_rows(2), tmp_path / "task=two" / "mine.parquet")
    elif change == "removed":
        path.unlink()
    elif change == "overwritten":
        write_partition(equal_rows(2), path)
    else:
        path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:])
    error, message = {
        "added": (DataRefusedError, "files are not in the catalogue: task=two/mine.parquet in"),
        "removed": (DamagedInputError, f"files of the catalogue are missing: task=two/{path.name} in"),
    }.get(change, (DamagedInputError, f"files differ from the catalogue: task=two/{path.name} in"))
    with pytest.raises(
        error, match=f"{message}.*run the same import again.*delete {tmp_path}/catalogue.json"
    ):
        find_files(tmp_path)
    if change != "damaged":  # both cures of the message work
        (copy := tmp_path / "copy").mkdir()
        for folder in ("task=one", "task=two"):
            shutil.copytree(tmp_path / folder, copy / folder)
        assert find_files(copy).names
    if change != "added":
        publish_tables(tmp_path, one=equal_rows(3), two=equal_rows(5))
        assert len(find_files(tmp_path).names) == 2


def test_reader_waits_for_an_import_that_moves_files(tmp_path: Path) -> None:
    publish_tables(tmp_path, one=equal_rows(3))
    extra = tmp_path / "task=one" / "extra.parquet"
    write_partition(equal_rows(2), extra)
    is_locked = threading.Event()

    def finish_import() -> None:
        with catalogue_lock(tmp_path):
            is_locked.set()
            time.sleep(0.3)
            extra.unlink()

    with ThreadPoolExecutor() as pool:
        finished = pool.submit(finish_import)
        assert is_locked.wait(10)
        assert len(find_files(tmp_path).names) == 1
        finished.result()


def test_damaged_catalogue_stops_the_import_before_rows_change(tmp_path: Path) -> None:
    (tmp_path / "catalogue.json").write_text('{"partitions": [{"path": 1}]}')
    with pytest.raises(
        DamagedInputError, match="catalogue.json is not a catalogue.*delete it and import again"
    ):
        publish_tables(tmp_path, one=equal_rows(1))
    assert not (tmp_path / "task=one").exists()
    for content in ("{", "[]", "{}", '{"partitions": 3}', '"x"', "\xff"):
        (tmp_path / "catalogue.json").write_text(content, "latin-1")
        with pytest.raises(DamagedInputError, match="catalogue.json is not a catalogue"):
            find_files(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_catalogue_that_is_no_file_is_not_an_absent_one(tmp_path: Path, kind: str) -> None:
    publish_tables(tmp_path / "data", one=equal_rows(1))
    path = tmp_path / "data" / "catalogue.json"
    path.rename(tmp_path / "moved.json")
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ("moved.json" if kind == "link" else "absent.json"))
    for read in (find_files, lambda root: publish_tables(root, two=equal_rows(1))):
        with pytest.raises(
            DamagedInputError, match="catalogue.json is a symbolic link or no file; .* delete it"
        ):
            read(tmp_path / "data")


def test_import_says_that_it_waits_for_another_and_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalog, "LOCK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(waiting, "FIRST_S", 0.05)
    caplog.set_level("INFO")
    with catalogue_lock(tmp_path), pytest.raises(RetryableError, match="another import is writing into"):
        publish_tables(tmp_path, one=equal_rows(1))
    assert f"waiting for another import into {tmp_path} to end" in caplog.text
