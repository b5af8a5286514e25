"""Each row_id gets one label for each task, whichever files hold it and however often the run is killed."""

import errno
import itertools
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import DamagedInputError, RetryableError
from pipeline.scoring import duplicates, key_digests, work_units
from pipeline.scoring.duplicates import read_duplicates
from pipeline.scoring.label_store import read_published
from pipeline.scoring.unit_result import UnitResult
from tests.support.score_inputs import TASKS, Inputs


def test_file_delivered_twice_is_labeled_once_and_names_its_first_place(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    first = inputs.write("two/part-0", "a", "b", "c")
    inputs.write("two/part-1", "c", "x", "a", "x", None, "c")
    inputs.write("three/part-0", "a")
    inputs.run()
    assert inputs.labels() == Counter(
        [("a", "two"), ("b", "two"), ("c", "two"), ("x", "two"), ("a", "three")]
    )
    assert inputs.errors() == [
        ("None", 4, "row_id is null"),
        ("a", 2, f"row_id repeats row 0 of {first}"),
        ("c", 0, f"row_id repeats row 2 of {first}"),
        ("c", 5, f"row_id repeats row 2 of {first}"),
        ("x", 3, "row_id repeats row 1 of the same file"),
    ]


def test_id_in_two_tasks_is_repeated_if_rows_are_labeled_for_all(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, all_tasks=True)
    first = inputs.write("three/part-0", "a")
    inputs.write("two/part-0", "a", "b")
    inputs.run()
    assert inputs.labels() == Counter((row, task) for row in "ab" for task in TASKS)
    assert inputs.errors() == [("a", 0, f"row_id repeats row 0 of {first}")]


def test_published_row_keeps_its_id_when_an_earlier_file_comes(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    published = inputs.write("two/part-1", "a", "bad", "b", blank="bad")
    inputs.run()
    inputs.write("two/part-0", "a", "bad", "c")
    inputs.run()
    assert inputs.labels() == Counter((row, "two") for row in ("a", "bad", "b", "c"))
    assert inputs.errors() == [
        ("a", 0, f"row_id repeats row 0 of {published}"),
        ("bad", 1, "query is blank"),
    ]


def test_id_of_a_row_without_label_is_labeled_in_the_next_file(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0", "bad", "a", blank="bad")
    second = inputs.write("two/part-1", "bad")
    inputs.write("two/part-2", "bad", "b")
    assert inputs.run() == {}
    assert inputs.labels() == Counter((row, "two") for row in ("a", "b", "bad"))
    assert inputs.errors() == [("bad", 0, "query is blank"), ("bad", 0, f"row_id repeats row 0 of {second}")]


@pytest.mark.parametrize("is_removed", [True, False])
def test_ids_of_a_file_that_fails_are_labeled_elsewhere(tmp_path: Path, is_removed: bool) -> None:
    inputs = Inputs(tmp_path)
    first = inputs.write("two/part-0", "a", "b")
    second = inputs.write("two/part-1", "b", "a")
    inputs.write("two/part-2", "a", "c")
    assert inputs.run(failing={first: False})[first].error == "crashed"
    labels = Counter((row, "two") for row in "abc")
    assert inputs.labels() == labels
    assert inputs.errors() == [("a", 0, f"row_id repeats row 1 of {second}")]
    if is_removed:
        Path(first).unlink()
    assert inputs.run() == {} and inputs.labels() == labels


@pytest.mark.parametrize("is_removed", [True, False])
def test_files_wait_for_a_file_that_may_be_scored_later(tmp_path: Path, is_removed: bool) -> None:
    inputs = Inputs(tmp_path)
    first = inputs.write("two/part-0", "a", "b")
    second = inputs.write("two/part-1", "b", "a")
    inputs.write("two/part-2", "c")
    failures = inputs.run(failing={first: True})
    assert set(failures) == {first, second} and all(result.retry for result in failures.values())
    assert inputs.labels() == Counter([("c", "two")])
    if is_removed:
        Path(first).unlink()
    assert inputs.run() == {} and inputs.labels() == Counter((row, "two") for row in "abc")


def test_unit_published_despite_its_error_keeps_its_ids(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0", "a")
    inputs.write("two/part-1", "a", "b")
    rounds = inputs.rounds()
    [first] = rounds.next_units()
    inputs.publish(first)
    [second] = rounds.next_units([UnitResult(first.unit_id, first.path, error="answer lost")])
    inputs.publish(second)
    assert inputs.labels() == Counter((row, "two") for row in "ab")


def delivered(draw: random.Random) -> list[tuple[str, list[str]]]:
    """Return files with row ids of which many repeat."""
    names = [f"{task}/part-{number}" for task in TASKS for number in range(3)]
    return [(name, [f"r{draw.randrange(40)}" for _ in range(draw.randrange(25))]) for name in names]


@pytest.mark.parametrize("seed", range(2))
def test_killed_run_decides_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    monkeypatch.setattr(duplicates, "BATCH_ROWS", 4)
    monkeypatch.setattr(duplicates, "CHUNK_ROWS", 7)
    monkeypatch.setattr(key_digests, "PART_KEYS", 13)
    files = delivered(random.Random(seed))
    whole, killed = (Inputs(tmp_path / name, seed % 2 == 1) for name in ("whole", "killed"))
    for name, row_ids in files:
        for inputs in (whole, killed):
            inputs.write(name, *row_ids, blank="r7")
    whole.run()
    for attempt in range(4):
        killed.run(kept_share=0.2, seed=100 * seed + attempt)
    killed.run()
    assert whole.labels() == killed.labels() and set(whole.labels().values()) == {1}
    reasons = [
        (row, number, reason.replace(str(killed.root), str(whole.root)))
        for row, number, reason in killed.errors()
    ]
    assert whole.errors() == sorted(reasons)
    num_rows = sum(len(row_ids) for _, row_ids in files)
    assert len(whole.labels()) // (2 if whole.all_tasks else 1) + len(whole.errors()) == num_rows
    expected = {(row, name.split("/")[0]) for name, row_ids in files for row in row_ids if row != "r7"}
    found = whole.labels()
    assert whole.all_tasks or set(found) == expected
    assert {row for row, _ in found} == {row for row, _ in expected}


def test_damaged_part_of_a_file_leaves_the_ids_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 6)
    inputs = Inputs(tmp_path)
    row_ids = [f"r{number}" for number in range(15)]
    path = Path(inputs.write("two/part-0", *row_ids))
    content = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(2).column(0).dictionary_page_offset
    content[page : page + 40] = bytes(40)
    path.write_bytes(content)
    inputs.write("two/part-1", *row_ids)
    assert set(inputs.run()) == {str(path)}
    assert inputs.labels() == Counter((row_id, "two") for row_id in row_ids)
    assert [row for _, row, _ in inputs.errors() if row >= 12] == [12, 13, 14]
    assert set(inputs.run()) == {str(path)} and set(inputs.labels().values()) == {1}


def test_unit_is_marked_if_its_ids_cannot_be_read_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs(tmp_path)
    path = inputs.write("two/part-0", "a")
    with monkeypatch.context() as patched:
        patched.setattr(duplicates, "check_schema", raise_damaged)
        [unit] = inputs.rounds().next_units()
    assert unit.has_unknown_ids
    with monkeypatch.context() as patched:
        patched.setattr(work_units, "count_rows", lambda files: [0] * len(files))
        [unit] = inputs.rounds().next_units()
    assert unit.has_unknown_ids
    [unit] = inputs.rounds().next_units()
    assert not unit.has_unknown_ids
    inputs.publish(unit)
    monkeypatch.setattr(duplicates, "check_schema", raise_damaged)
    inputs.rounds()
    shutil.rmtree(tmp_path / "scores" / "cache")
    with pytest.raises(RetryableError, match=f"row_ids of a published file cannot be read now: {path}"):
        inputs.rounds()


def raise_damaged(*_: object) -> None:
    raise DamagedInputError("read error")


def test_full_disk_leaves_no_file_of_row_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, calls, allocate = Inputs(tmp_path), itertools.count(1), os.posix_fallocate
    inputs.write("two/part-0", "a")

    def full(*arguments: int) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        inputs.rounds()
    assert list(inputs.attempts_dir.iterdir()) == []


def test_missing_list_of_duplicates_is_retried_and_not_ignored(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0", "a")
    inputs.write("two/part-1", "a")
    rounds = inputs.rounds()
    [first] = rounds.next_units()
    inputs.publish(first)
    [second] = rounds.next_units([UnitResult(first.unit_id, first.path)])
    assert read_duplicates(tmp_path / "elsewhere", first) == {}
    with pytest.raises(RetryableError, match="list of repeated row_ids is not readable"):
        read_duplicates(tmp_path / "elsewhere", second)


def test_run_without_rows_has_no_duplicates(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0")
    inputs.run()
    assert inputs.labels() == Counter() and read_published(inputs.config.scores_location).num_rows == 0
