"""Each row_id gets one label for each task, whichever files hold it and however often the run is killed."""

import errno
import itertools
import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import DamagedInputError, RelevanceError, RetryableError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import duplicates, key_digests, work_units
from pipeline.scoring.duplicates import ScoringRounds, read_duplicates
from pipeline.scoring.label_store import publish_unit, read_errors, read_manifests, read_published
from pipeline.scoring.row_errors import FirstPlaces, split_valid_rows
from pipeline.scoring.unit_manifest import UnitInput
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit, read_unit
from tests.support.planted import planted_config
from tests.support.score_partitions import score_table, unit_manifest
from tests.support.scoring_world import plan

TASKS = ("two", "three")

NULLABLE_SCHEMA = pa.schema([column.with_nullable(True) for column in ROW_SCHEMA])


@dataclass
class Inputs:
    """Files of rows to score, and the labels that runs publish."""

    root: Path
    all_tasks: bool = False

    @property
    def config(self) -> RunConfig:
        data = {"to_score": str(self.root / "to_score")}
        scoring = {"scores": str(self.root / "scores")}
        return build_config(
            {**planted_config(self.root, "nowhere"), "data": data, "scoring": scoring}, "test"
        )

    def write(self, name: str, *row_ids: str | None, blank: str = "") -> str:
        """Write the file task=<task>/<name>, and return its path; the query of row id `blank` is blank."""
        path = self.root / "to_score" / f"task={name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {"ad_title": "lamp", "market": "us"}
        rows = [{"row_id": row, "query": "" if row == blank else "lamp", **texts} for row in row_ids]
        pq.write_table(pa.Table.from_pylist(rows, NULLABLE_SCHEMA), path, row_group_size=3)
        return str(path)

    def run(
        self, kept_share: float = 1.0, seed: int = 0, failing: Mapping[str, bool] | None = None
    ) -> dict[str, UnitResult]:
        """Score the units that are not published, in any order; a killed run leaves some out.

        Args:
            kept_share: Of the units of each round.
            seed: Of the order, and of the units that are left out.
            failing: Paths of files that cannot be scored, with whether another attempt may succeed.

        Returns:
            The failures by path.
        """
        draw, rounds = random.Random(seed), self.rounds()
        results: list[UnitResult] = []
        while units := rounds.next_units(results):
            kept = [unit for unit in draw.sample(units, len(units)) if draw.random() < kept_share]
            results += [self.score(unit, failing or {}) for unit in kept]
            if len(kept) < len(units):
                return {}
        results += rounds.describe_waiting()
        return {result.path: result for result in results if result.error}

    def rounds(self) -> ScoringRounds:
        """Return the rounds of the next run."""
        to_do, published = plan(self.config, "b", self.all_tasks)
        folder = self.attempts_dir
        folder.mkdir(exist_ok=True)
        rounds = ScoringRounds(to_do, published, self.config.scores_location, folder)
        assert {path.suffix for path in folder.iterdir()} <= {".parquet"}
        return rounds

    @property
    def attempts_dir(self) -> Path:
        return self.root / "attempts"

    def score(self, unit: WorkUnit, failing: Mapping[str, bool]) -> UnitResult:
        """Publish a unit as an actor does, with made-up probabilities."""
        if unit.path in failing:
            return UnitResult(unit.unit_id, unit.path, error="crashed", retry=failing[unit.path])
        try:
            self.publish(unit)
        except RelevanceError as error:
            return UnitResult(unit.unit_id, unit.path, error=str(error))
        return UnitResult(unit.unit_id, unit.path)

    def publish(self, unit: WorkUnit) -> None:
        places = FirstPlaces(read_duplicates(self.attempts_dir, unit))
        parts = [split_valid_rows(rows, unit.task, first, "b", places) for rows, first in read_unit(unit)]
        valid, errors = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
        tasks = TASKS if self.all_tasks else (unit.task,)
        filler: dict[str, Any] = score_table(1).to_pylist()[0] | {"bundle_sha256": "b"}
        ids = valid["row_id"].to_pylist()
        labels = [{**filler, "row_id": row_id, "task": task} for task in tasks for row_id in ids]
        manifest = unit_manifest(
            unit.unit_id,
            task=unit.task,
            bundle_sha256="b",
            tasks=tasks,
            input=UnitInput(unit.path, unit.digest, unit.part, valid.num_rows + errors.num_rows),
        )
        publish_unit(
            self.config.scores_location, manifest, pa.Table.from_pylist(labels, SCORE_SCHEMA), errors
        )

    def labels(self) -> Counter[tuple[str, str]]:
        """Count the published labels by row id and task, in all label files."""
        scores = Path(self.config.scores_location)
        labels: Counter[tuple[str, str]] = Counter()
        for manifest in read_manifests(scores):
            for file in manifest.label_files:
                table = pq.read_table(scores / file.path)
                labels.update(zip(table["row_id"].to_pylist(), table["task"].to_pylist(), strict=True))
        return labels

    def errors(self) -> list[tuple[str, int, str]]:
        """Return (row id, row, reason) of all errors."""
        rows = read_errors(self.config.scores_location).to_pylist()
        return sorted((str(row["row_id"]), row["row"], row["reason"]) for row in rows)


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
