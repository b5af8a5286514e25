"""Each row_id gets one label for each task, whichever files hold it and however often the run is killed."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import RetryableError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import duplicates, work_units
from pipeline.scoring.duplicates import find_duplicates, read_duplicates
from pipeline.scoring.label_store import publish_unit, read_errors, read_manifests, read_published
from pipeline.scoring.row_errors import FirstPlaces, split_valid_rows
from pipeline.scoring.unit_manifest import UnitInput
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
    runs: int = 0

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

    def run(self, kept_share: float = 1.0, seed: int = 0) -> None:
        """Score the units that are not published, in any order; a killed run leaves some out."""
        to_do, published = plan(self.config, "b", self.all_tasks)
        self.runs += 1
        folder = self.root / f"attempts-{self.runs}"
        folder.mkdir()
        units = find_duplicates(to_do, published, self.config.scores_location, folder)
        assert [path for path in folder.iterdir() if path.suffix != ".parquet"] == []
        draw = random.Random(seed)
        for unit in draw.sample(units, len(units)):
            if draw.random() < kept_share:
                self.publish(unit, folder)

    def publish(self, unit: WorkUnit, folder: Path) -> None:
        """Publish a unit as an actor does, with made-up probabilities."""
        places = FirstPlaces(read_duplicates(folder, unit))
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
    assert inputs.labels() == Counter([("a", "two"), ("b", "two"), ("c", "two")])
    assert inputs.errors() == [
        ("a", 0, f"row_id repeats row 0 of {published}"),
        ("bad", 1, "query is blank"),
        ("bad", 1, f"row_id repeats row 1 of {published}"),
    ]


def delivered(draw: random.Random) -> list[tuple[str, list[str]]]:
    """Return files with row ids of which many repeat."""
    names = [f"{task}/part-{number}" for task in TASKS for number in range(4)]
    return [(name, [f"r{draw.randrange(40)}" for _ in range(draw.randrange(25))]) for name in names]


@pytest.mark.parametrize("seed", range(2))
def test_killed_run_decides_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    monkeypatch.setattr(duplicates, "BATCH_ROWS", 4)
    monkeypatch.setattr(duplicates, "DIGESTS_AT_ONCE", 13)
    files = delivered(random.Random(seed))
    whole, killed = (Inputs(tmp_path / name, seed % 2 == 1) for name in ("whole", "killed"))
    for name, row_ids in files:
        for inputs in (whole, killed):
            inputs.write(name, *row_ids, blank="r7")
    whole.run()
    for attempt in range(5):
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


def test_damaged_file_claims_no_id(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    path = Path(inputs.write("two/part-0", *(f"r{number}" for number in range(50))))
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    inputs.write("two/part-1", "r1")
    to_do, _ = plan(inputs.config, "b")
    assert [unit.duplicates for unit in find_duplicates(to_do, [], tmp_path / "scores", tmp_path)] == [0, 0]


def test_missing_list_of_duplicates_is_retried_and_not_ignored(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0", "a")
    inputs.write("two/part-1", "a")
    to_do, _ = plan(inputs.config, "b")
    first, second = find_duplicates(to_do, [], tmp_path / "scores", tmp_path)
    assert read_duplicates(tmp_path / "elsewhere", first) == {}
    with pytest.raises(RetryableError, match="list of repeated row_ids is not readable"):
        read_duplicates(tmp_path / "elsewhere", second)


def test_run_without_rows_has_no_duplicates(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.write("two/part-0")
    inputs.run()
    assert inputs.labels() == Counter() and read_published(inputs.config.scores_location).num_rows == 0
