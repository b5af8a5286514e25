"""Labels of all tasks in run records, manifests and work units."""

import pyarrow.dataset as ds
import pytest

from pipeline.errors import DamagedInputError
from pipeline.scoring.label_store import read_errors, read_published
from pipeline.scoring.scoring_record import read_run
from pipeline.storage.filesystem import read_json, write_json
from tests.support.all_tasks_scoring import (
    SHARED,
    BuildWorld,
    all_inputs,
    check_as_plain,
    manifests_as_json,
    score_all,
)
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS


def test_single_task_and_multitask_labels_are_separate_units(build: BuildWorld) -> None:
    world = build(**SHARED)
    plain, of_all = world.units(), world.units(all_tasks=True)
    assert not {unit.unit_id for unit in plain} & {unit.unit_id for unit in of_all}
    score_all(world)
    assert world.units() == plain and world.units(all_tasks=True) == []
    scorer = world.scorer()
    assert [scorer.score_unit(unit).labels for unit in plain] == [ROWS] * 3
    for manifest in manifests_as_json(world):
        if manifest["partition"] in {unit.unit_id for unit in plain}:
            assert "tasks" not in manifest and "profiles" not in manifest and manifest["profile"]["us"]
        else:
            assert (
                manifest["tasks"] == ["two", "three"]
                and set(manifest["profiles"]) == {"two", "three"}
                and "profile" not in manifest
            )


def test_labels_join_on_row_and_task(build: BuildWorld) -> None:
    world = build(**SHARED)
    score_all(world)
    files = [
        str(world.scores_dir / file["path"])
        for manifest in manifests_as_json(world)
        for file in manifest["files"]
    ]
    labels = ds.dataset(files).to_table()
    assert labels.num_rows == 2 * all_inputs(world).num_rows and labels.sort_by("row_id").equals(
        read_run(world.scores_dir).sort_by("row_id")
    )


def test_bad_rows_are_one_error_and_counted_per_task(build: BuildWorld) -> None:
    world = build(**SHARED)
    rows = planted_rows("three", ROWS, 9, labeled=False)
    rows[1]["query"] = " "
    write_rows(rows, world.root / "to_score" / "task=three" / "part-9-bad.parquet")
    write_rows([], world.root / "to_score" / "task=three" / "part-8-empty.parquet")
    _, record = score_all(world)
    [error] = read_errors(world.scores_dir).to_pylist()
    assert (error["row_id"], error["task"], error["reason"]) == ("three-9-1", "three", "query is blank")
    assert [record[name] for name in ("rows_in", "labels", "errors", "rows_scored", "all_tasks")] == [
        16,
        30,
        1,
        15,
        True,
    ]
    assert record["tasks"] == {task: {"rows_in": 16, "labels": 15, "errors": 1} for task in ("two", "three")}
    assert {task: sum(profile["us"]["labels"]) for task, profile in record["profiles"].items()} == {
        "two": 15,
        "three": 15,
    }
    assert (
        len(record["profiles"]["two"]["us"]["labels"]) == 2
        and len(record["profiles"]["three"]["us"]["labels"]) == 3
    )


def test_manifest_with_missing_task_labels_fails_the_run(build: BuildWorld) -> None:
    world = build(**SHARED)
    units = world.units(all_tasks=True)
    score_all(world)
    path = world.scores_dir / "manifests" / f"{units[0].unit_id}.json"
    write_json(path, read_json(path) | {"rows": ROWS})
    with pytest.raises(DamagedInputError, match="row counts disagree in the manifest"):
        world.build_record("r", units, [])


def test_drift_compares_with_the_last_multitask_run(build: BuildWorld) -> None:
    world = build(**SHARED)
    write_rows(
        planted_rows("two", 120, 11, labeled=False),
        world.root / "to_score" / "task=two" / "part-6-many.parquet",
    )
    _, first = score_all(world, "20260131-a")
    assert first["drift"]["against_last_run"] == []
    plain, _ = world.score_run("20260131-b")
    assert plain.drift.against_last_run == () and plain.all_tasks is False, "there is no plain run before"
    write_rows(
        planted_rows("two", 130, 12, labeled=False),
        world.root / "to_score" / "task=two" / "part-7-more.parquet",
    )
    _, third = score_all(world, "20260131-c")
    assert {(one["task"], one["rows"]) for one in third["drift"]["against_last_run"]} == {
        ("two", 130),
        ("three", 130),
    }


def test_cached_pairs_keep_their_scores_of_all_tasks(
    build: BuildWorld,
) -> None:
    world = build(**SHARED)
    score_all(world, "20260131-a")
    before = {
        (row["input_hash"], row["task"]): row["probability"]
        for row in read_published(world.scores_dir).to_pylist()
    }
    rows = [*planted_rows("two", ROWS, 0, labeled=False), *planted_rows("two", 3, 77, labeled=False)][::-1]
    renamed = [row | {"row_id": f"again-{number}"} for number, row in enumerate(rows)]
    # of another task's folder
    write_rows(renamed, world.root / "to_score" / "task=three" / "part-7-again.parquet")
    _, record = score_all(world, "20260201-a")
    assert (record["rows_scored"], record["rows_reused"], record["labels"]) == (
        ROWS + 3,
        ROWS,
        2 * (ROWS + 3),
    )
    again = [
        row for row in read_run(world.scores_dir).to_pylist() if (row["input_hash"], row["task"]) in before
    ]
    assert len(again) == 2 * ROWS and all(
        row["probability"] == before[row["input_hash"], row["task"]] for row in again
    )


def test_partly_cached_row_is_predicted_and_keeps_cached_scores(
    build: BuildWorld,
) -> None:
    world = build(**SHARED)
    world.score_run("20260131-a")
    before = {row["row_id"]: row["probability"] for row in read_run(world.scores_dir).to_pylist()}
    _, record = score_all(world, "20260131-b")
    assert record["rows_reused"] == 0
    kept = {
        row["row_id"]: row["probability"]
        for row in read_run(world.scores_dir).to_pylist()
        if row["row_id"].startswith(row["task"])
    }
    assert kept == before, "to the bit"
    check_as_plain(world, read_run(world.scores_dir))
