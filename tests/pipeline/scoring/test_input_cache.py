"""Plans read new input files alone, and a wrong entry of their cache publishes nothing."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest

from models.files import file_sha256
from pipeline.config.loading import build_config
from pipeline.data.parquet_batches import BatchFile
from pipeline.data.writer import StagedRows
from pipeline.errors import DamagedInputError, RetryableError
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import input_cache
from pipeline.scoring.input_cache import InputCache
from pipeline.scoring.work_units import Plan, plan_units, read_unit
from pipeline.storage import filesystem
from tests.support.imported import imported
from tests.support.memory_bucket import MemoryBucket
from tests.support.planted import planted_config, planted_rows, write_rows
from tests.support.score_inputs import Inputs
from tests.support.scoring_world import full_plan


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust files that were just written, as each test changes them at other times."""
    monkeypatch.setattr(input_cache, "SETTLED_S", -1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of files that are hashed or opened, to which each plan in a new process adds."""
    found: list[str] = []

    def hash_file(path: Path) -> str:
        found.append(f"hash {path.name}")
        return file_sha256(path)

    class CountedFile(BatchFile):
        def __init__(self, source: Any, **options: Any) -> None:
            found.append(f"open {Path(str(source)).name}")
            super().__init__(source, **options)

    monkeypatch.setattr(filesystem, "file_sha256", hash_file)
    monkeypatch.setattr("pipeline.data.reader.BatchFile", CountedFile)
    return found


def plan_anew(given: Inputs) -> Plan:
    """Plan as a new process does, and save what it learned."""
    filesystem._stamped_sha256.cache_clear()
    plan = full_plan(given.config, "b")
    plan.inputs.save()
    return plan


def test_rerun_with_nothing_new_reads_no_input(tmp_path: Path, reads: list[str]) -> None:
    given = Inputs(tmp_path)
    given.write("two/part-0", "a", "b")
    given.write("two/part-1", "c")
    first = plan_anew(given)
    assert sorted(reads) == [
        "hash part-0.parquet", "hash part-1.parquet", "open part-0.parquet", "open part-1.parquet",
    ]  # fmt: skip
    reads.clear()
    assert plan_anew(given)[:2] == first[:2] and reads == []
    given.write("two/part-1", "d", "e")
    given.write("two/part-2", "f")
    assert [unit.rows for unit in plan_anew(given).to_do] == [2, 2, 1]
    assert sorted(reads) == [
        "hash part-1.parquet", "hash part-2.parquet", "open part-1.parquet", "open part-2.parquet",
    ]  # fmt: skip


def test_files_of_a_catalogue_are_hashed_once(tmp_path: Path, reads: list[str]) -> None:
    folder = tmp_path / "rows"
    with StagedRows(folder) as staged:
        for task in ("two", "three"):
            rows = planted_rows(task, 4, 1, labeled=False)
            staged.write(task, pa.Table.from_pylist(rows, ROW_SCHEMA))
        staged.publish()
    tasks = build_config(planted_config(tmp_path, "nowhere"), "test").tasks

    def plan() -> Plan:
        filesystem._stamped_sha256.cache_clear()
        planned = plan_units(folder, tmp_path / "scores", tasks, "b")
        planned.inputs.save()
        return planned

    plan()
    reads.clear()
    assert len(plan().to_do) == 2 and reads == []
    path = imported(folder, "task=two/part-0.parquet")
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match="differ from the catalogue"):
        plan()


def test_rerun_on_a_bucket_requests_no_byte_of_inputs(tmp_path: Path) -> None:
    bucket, given = MemoryBucket("rows"), Inputs(tmp_path)
    for number in range(5):
        path = Path(given.write(f"two/part-{number}", f"a{number}"))
        bucket.put(f"task=two/part-{number}.parquet", path.read_bytes())

    def plan() -> Plan:
        bucket.requests.clear()
        planned = plan_units("s3://rows", tmp_path / "scores", given.config.tasks, "b")
        planned.inputs.save()
        return planned

    with bucket.opened_by_location():
        first = plan()
        assert len(first.to_do) == 5 and bucket.requested("get_range") == 5
        assert plan()[:2] == first[:2] and {method for method, _ in bucket.requests} == {"list"}
        bucket.put("task=two/part-1.parquet", bucket.get("task=two/part-0.parquet"))
        plan()
        assert bucket.requested("get_range") == bucket.requested("get_range", "task=two/part-1") == 1


def test_file_written_a_moment_ago_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_cache, "SETTLED_S", 2.0)
    path, scores = tmp_path / "rows.parquet", tmp_path / "scores"
    path.write_bytes(b"x")

    def num_rows() -> int | None:
        cache = InputCache(scores, tmp_path)
        digest = cache.sha256(path)
        found = cache.num_rows(str(path), digest)
        cache.record(str(path), digest, 3)
        cache.save()
        return found

    assert num_rows() is None and num_rows() is None
    later_s = time.time() + 3
    monkeypatch.setattr(time, "time", lambda: later_s)
    assert num_rows() is None and num_rows() == 3


@contextmanager
def tampered(given: Inputs, path: Path) -> Iterator[None]:
    """Give a file another content, which the cache takes for the old one."""
    content, state = path.read_bytes(), path.stat()
    given.write("two/part-0", "x", "y", "z")
    other = path.read_bytes()
    assert len(other) == len(content) and other != content
    stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
    with patch.object(input_cache, "_stamp", lambda found: stamp):
        yield


def test_wrong_entry_publishes_nothing_and_is_forgotten(tmp_path: Path) -> None:
    given = Inputs(tmp_path)
    path = Path(given.write("two/part-0", "a", "b", "c"))
    plan_anew(given)
    with tampered(given, path):
        plan = plan_anew(given)
        [unit] = plan.to_do
        with pytest.raises(RetryableError, match="input changed while it was scored"):
            list(read_unit(unit))
        with pytest.raises(RetryableError, match="input changed while it was scored"):
            given.rounds()
        assert given.labels() == {}
        [again] = plan_anew(given).to_do
        assert again.unit_id != unit.unit_id and again.digest == file_sha256(path)
        assert given.run() == {} and sorted(given.labels()) == [("x", "two"), ("y", "two"), ("z", "two")]


@pytest.mark.parametrize("num_rows", [1, 2, 4])
def test_wrong_number_of_rows_loses_no_row(tmp_path: Path, num_rows: int) -> None:
    given = Inputs(tmp_path)
    path = given.write("two/part-0", "a", "b", "c")
    cache = InputCache(given.config.scores_location, given.config.to_score_location)
    cache.record(path, cache.sha256(Path(path)), num_rows)
    cache.save()
    for _ in range(3):
        failures = given.run()
        if not failures:
            break
        plan = full_plan(given.config, "b")
        plan.inputs.forget(failures)
    assert sorted(given.labels()) == [("a", "two"), ("b", "two"), ("c", "two")]


def test_failed_file_is_forgotten_and_others_are_not(tmp_path: Path, reads: list[str]) -> None:
    given = Inputs(tmp_path)
    paths = [given.write(f"two/part-{number}", f"a{number}") for number in range(3)]
    plan_anew(given).inputs.forget(paths[1:2])
    reads.clear()
    plan_anew(given)
    assert sorted(reads) == ["hash part-1.parquet", "open part-1.parquet"]


def test_damaged_file_is_no_entry(tmp_path: Path) -> None:
    given = Inputs(tmp_path)
    path = Path(given.write("two/part-0", "a"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert [unit.rows for unit in plan_anew(given).to_do] == [0]
    path.write_bytes(content)
    for _ in range(2):
        assert [unit.rows for unit in plan_anew(given).to_do] == [1]


def test_entries_of_two_places_are_apart(tmp_path: Path) -> None:
    config = build_config(planted_config(tmp_path, "nowhere"), "test")
    for name, _ in itertools.product("ab", range(2)):
        write_rows(
            planted_rows("two", 2, 1, labeled=False), tmp_path / name / "task=two" / f"part-{name}.parquet"
        )
        plan = plan_units(tmp_path / name, tmp_path / "scores", config.tasks, "b")
        plan.inputs.save()
        assert [Path(unit.path).stem for unit in plan.to_do] == [f"part-{name}"]
    assert len(list((tmp_path / "scores" / "cache").rglob("*.parquet"))) == 2
