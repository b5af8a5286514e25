"""Row ids are read of new files alone, and repeated ids are found as if all files were read."""

import random
from collections import Counter
from pathlib import Path

import pytest

from pipeline.scoring import duplicates, work_units
from pipeline.scoring.work_units import WorkUnit
from tests.support.score_inputs import TASKS, Inputs
from tests.support.score_partitions import files_below


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of files whose row ids are read."""
    found: list[str] = []
    read = duplicates._read_digests

    def counted(unit: WorkUnit, *arguments: object) -> bool:
        found.append(Path(unit.path).stem)
        return read(unit, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(duplicates, "_read_digests", counted)
    return found


@pytest.mark.parametrize("all_tasks", [False, True])
def test_ids_are_read_once_and_repeats_are_still_found(
    tmp_path: Path, reads: list[str], all_tasks: bool
) -> None:
    inputs = Inputs(tmp_path, all_tasks)
    first = inputs.write("two/part-0", "a", "b", None)
    inputs.write("two/part-1", "c")
    inputs.run()
    inputs.write("two/part-2", "b", "d")
    inputs.write("three/part-3", "a")
    reads.clear()
    inputs.run()
    assert sorted(reads) == ["part-2", "part-3"]
    repeated = [("b", 0, f"row_id repeats row 1 of {first}"), ("None", 2, "row_id is null")]
    if all_tasks:
        repeated.append(("a", 0, f"row_id repeats row 0 of {first}"))
    assert inputs.errors() == sorted(repeated) and set(inputs.labels().values()) == {1}


def test_ids_of_another_content_are_read_again(tmp_path: Path, reads: list[str]) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0", "a", "b")
    inputs.run()
    inputs.write("two/part-0", "a", "x")
    inputs.write("two/part-1", "b", "x")
    reads.clear()
    inputs.run()
    assert sorted(reads) == ["part-0", "part-1"]
    assert {row for row, _ in inputs.labels()} == {"a", "b", "x"}
    assert [(row, number) for row, number, _ in inputs.errors()] == [("x", 1)]


def test_ids_of_each_kind_of_run_are_apart(tmp_path: Path) -> None:
    by_task = Inputs(tmp_path)
    by_task.write("two/part-0", "a")
    by_task.run()
    all_tasks = Inputs(tmp_path, all_tasks=True)
    first = all_tasks.write("three/part-0", "a")
    all_tasks.run()
    assert [reason for _, _, reason in all_tasks.errors()] == [f"row_id repeats row 0 of {first}"]


@pytest.mark.parametrize("seed", range(3))
def test_killed_or_damaged_cache_changes_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    draw = random.Random(seed)
    cached, uncached = Inputs(tmp_path / "cached"), Inputs(tmp_path / "uncached")
    rows: Counter[tuple[str, str]] = Counter()
    for day in range(4):
        for task in TASKS:
            row_ids = [f"r{draw.randrange(60)}" for _ in range(draw.randrange(25))]
            rows.update((row_id, task) for row_id in row_ids)
            for inputs in (cached, uncached):
                inputs.write(f"{task}/part-{day}", *row_ids)
        for inputs in (cached, uncached):
            inputs.run(kept_share=0.6, seed=day)
        for name in files_below(tmp_path / "uncached" / "scores"):
            if name.startswith("cache/"):
                path = tmp_path / "uncached" / "scores" / name
                path.write_bytes(path.read_bytes()[: draw.randrange(200)])
    for inputs in (cached, uncached):
        assert inputs.run() == {} and set(inputs.labels().values()) == {1}
        assert set(inputs.labels()) == set(rows)
    assert cached.labels() == uncached.labels()
    assert [error[:2] for error in cached.errors()] == [error[:2] for error in uncached.errors()]
