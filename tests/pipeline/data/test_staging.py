"""Publication of an import in one step, also of one that is killed."""

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.data import import_places
from pipeline.data.catalog import find_files
from pipeline.data.reader import find_partitions, read_partition
from pipeline.data.staging import StagingFolder, list_imported
from pipeline.data.writer import StagedRows, write_partition
from pipeline.errors import RelevanceError
from pipeline.schema import ROW_SCHEMA
from tests.support.imported import equal_rows, file_names, publish_tables
from tests.support.kills import file_digests, kill_at_every_event

TASKS = [
    Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
    for name in ("one", "two")
]


def _publish(root: Path, prefix: str, stem: str, **num_rows: int) -> None:
    with StagedRows(root / "judged", stem) as staged:
        for task, number in num_rows.items():
            rows = [
                {"row_id": f"{prefix}-{task}-{n}", "query": "q", "ad_title": "t", "market": "us", "label": 1}
                for n in range(number)
            ]
            staged.write(task, pa.Table.from_pylist(rows, ROW_SCHEMA))
        (staged.dir / "quarantine").mkdir()
        (staged.dir / "quarantine" / "rejects.parquet").write_text(prefix)
        staged.publish(["quarantine/rejects.parquet"])


def _publish_new(root: Path) -> None:
    _publish(root, "new", "part", one=4, two=2)


def _read(root: Path) -> list[str] | str:
    """Return the first part of all row ids, or the refusal."""
    try:
        partitions = find_partitions(root / "judged", TASKS)
    except RelevanceError as error:
        return str(error)
    rows = pa.concat_tables([read_partition(path) for paths in partitions.values() for path in paths])
    return sorted({row_id.partition("-")[0] for row_id in rows["row_id"].to_pylist()})


def _kill_imports(tmp_path: Path, stride: int) -> list[Any]:
    """Check reruns after kills of an import; return what was read after each kill."""
    kills = kill_at_every_event(_publish_new, tmp_path / "template", tmp_path / "root", _read, stride)
    assert not kills.differences()
    return [kill.look.value for kill in kills.kills if kill.look]


def _refused(value: Any) -> bool:
    return "run the same import again" in str(value)


def test_killed_import_leaves_old_rows_new_rows_or_a_refusal(tmp_path: Path) -> None:
    _publish(tmp_path / "template", "old", "part", one=3, two=5)
    _publish(tmp_path / "template", "other", "other", two=1)
    seen = _kill_imports(tmp_path, stride=7)
    assert all(value in (["old", "other"], ["new", "other"]) or _refused(value) for value in seen)
    assert len(seen) > 4


@pytest.mark.failures
@pytest.mark.parametrize("before", ["nothing", "rows of others", "rows"])
def test_import_killed_at_any_event_is_whole_absent_or_refused(tmp_path: Path, before: str) -> None:
    (tmp_path / "template").mkdir()
    if before == "rows":
        _publish(tmp_path / "template", "old", "part", one=3, two=5)
    if before != "nothing":
        _publish(tmp_path / "template", "other", "other", two=1)
    seen = _kill_imports(tmp_path, stride=1)
    others = [] if before == "nothing" else ["other"]
    whole = [["old", *others] if before == "rows" else others, ["new", *others]]
    mixed = [value for value in seen if value not in whole and not _refused(value)]
    assert all("holds no task" in value or "is not a folder" in value for value in mixed), mixed
    assert before == "nothing" or not mixed
    assert whole[1] in seen and len(seen) > 20


def test_live_imports_share_a_folder(tmp_path: Path) -> None:
    with StagedRows(tmp_path / "judged", "first") as first:
        first.write("one", equal_rows(2, "first-"))
        _publish(tmp_path, "second", "second", one=1)
        first.publish()
    assert _read(tmp_path) == ["first", "second"]


@pytest.mark.parametrize("step", ["write_catalogue", "_sync_folders"])
def test_failed_publication_keeps_the_old_rows_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _publish(tmp_path, "old", "part", one=3, two=5)
    before = file_digests(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(import_places, step, fail)
        _publish_new(tmp_path)
    assert file_digests(tmp_path) == before and _read(tmp_path) == ["old"]


def test_error_after_the_catalogue_keeps_the_new_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(tmp_path, "old", "part", one=3)
    write = import_places.write_catalogue

    def write_and_fail(*arguments: Any) -> None:
        write(*arguments)
        raise OSError(errno.EIO, "folder not synced")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="not synced"):
        patch.setattr(import_places, "write_catalogue", write_and_fail)
        _publish_new(tmp_path)
    _publish_new(tmp_path)
    assert _read(tmp_path) == ["new"]


def test_folder_of_imports_replaces_the_files_of_earlier_ones(tmp_path: Path) -> None:
    root, earlier = tmp_path / "judged", list[str]()
    for prefix, stems in (("old", "ab"), ("new", "bc")):
        with StagingFolder(root, "sources") as folder:
            for stem in stems:
                publish_tables(folder.dir, stem, **{f"task-{stem}": equal_rows(2, prefix)})
            (folder.dir / "quarantine").mkdir()
            for stem in stems:
                (folder.dir / "quarantine" / f"{stem}.parquet").write_text(prefix)
            files = list_imported(folder.dir)
            folder.publish_folder(earlier)
        earlier = files
        if prefix == "old":
            (root / "catalogue.json").unlink()
            write_partition(equal_rows(1), root / "task=task-a" / "part-0.parquet")
    assert file_names(root) == [
        "catalogue.json",
        "quarantine/b.parquet",
        "quarantine/c.parquet",
        "task=task-a/part-0.parquet",
        "task=task-b/b-0.parquet",
        "task=task-c/c-0.parquet",
    ]
    assert (root / "quarantine" / "b.parquet").read_text() == "new"
    assert len(find_files(root).names) == 3
