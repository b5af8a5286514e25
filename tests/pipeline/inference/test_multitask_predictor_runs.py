"""Labels of all tasks in the records, manifests and partitions of runs."""

import pyarrow.dataset as ds
import pytest

from pipeline.errors import DamagedInputError
from pipeline.registry.version_files import FetchedVersion
from pipeline.scoring.label_store import put_record, read_errors, read_manifests, read_published, read_run
from pipeline.scoring.run_record import ScoringRun, run_record
from pipeline.storage.filesystem import read_json, write_json
from tests.support.all_tasks_scoring import SHARED, BuildWorld, all_inputs, check_as_plain, score_all
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS


def test_plain_labels_and_those_of_all_tasks_are_partitions_of_their_own(build: BuildWorld) -> None:
    world = build(**SHARED)
    plain, of_all = world.units(), world.units(all_tasks=True)
    assert not {unit.partition for unit in plain} & {unit.partition for unit in of_all}
    score_all(world)
    assert world.units() == plain and world.units(all_tasks=True) == []
    scorer = world.scorer()
    assert [scorer.outcome(unit).labels for unit in plain] == [ROWS] * 3
    for manifest in read_manifests(world.scores_dir):
        if manifest["partition"] in {unit.partition for unit in plain}:
            assert "tasks" not in manifest and "profiles" not in manifest and manifest["profile"]["us"]
        else:
            assert (
                manifest["tasks"] == ["two", "three"]
                and set(manifest["profiles"]) == {"two", "three"}
                and "profile" not in manifest
            )


def test_a_reader_that_knows_nothing_of_tasks_joins_labels_on_row_and_task(build: BuildWorld) -> None:
    world = build(**SHARED)
    score_all(world)
    files = [
        str(world.scores_dir / file["path"])
        for manifest in read_manifests(world.scores_dir)
        for file in manifest["files"]
    ]
    labels = ds.dataset(files).to_table()
    assert labels.num_rows == 2 * all_inputs(world).num_rows and labels.sort_by("row_id").equals(
        read_run(world.scores_dir).sort_by("row_id")
    )


def test_bad_rows_are_errors_once_and_the_record_counts_each_task(build: BuildWorld) -> None:
    world = build(**SHARED)
    rows = planted_rows("three", ROWS, 9, labelled=False)
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


def test_a_manifest_with_labels_of_too_few_tasks_ends_the_run(build: BuildWorld) -> None:
    world = build(**SHARED)
    units = world.units(all_tasks=True)
    score_all(world)
    path = world.scores_dir / "manifests" / f"{units[0].partition}.json"
    write_json(path, read_json(path) | {"rows": ROWS})
    with pytest.raises(DamagedInputError, match="has other rows than labels and errors together"):
        run_record(
            world.scores_dir,
            ScoringRun("r", FetchedVersion("1", world.root / "bundle", world.sha256), 0.0, None),
            units,
            [],
        )


def test_scores_of_all_tasks_are_held_against_the_last_run_of_that_kind(build: BuildWorld) -> None:
    world = build(**SHARED)
    write_rows(
        planted_rows("two", 120, 11, labelled=False),
        world.root / "to_score" / "task=two" / "part-6-many.parquet",
    )
    _, first = score_all(world, "20260131-a")
    assert first["drift"]["against_last_run"] == []
    scorer, units = world.scorer(), world.units()
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    plain = run_record(
        world.scores_dir,
        ScoringRun("20260131-b", champion, 0.0, None),
        units,
        [scorer.outcome(unit) for unit in units],
    )
    put_record(world.scores_dir, plain)
    assert plain["drift"]["against_last_run"] == [] and plain["all_tasks"] is False, (
        "there is no plain run before"
    )
    write_rows(
        planted_rows("two", 130, 12, labelled=False),
        world.root / "to_score" / "task=two" / "part-7-more.parquet",
    )
    _, third = score_all(world, "20260131-c")
    assert {(one["task"], one["rows"]) for one in third["drift"]["against_last_run"]} == {
        ("two", 130),
        ("three", 130),
    }


def test_a_pair_that_was_judged_for_all_tasks_is_not_judged_again_and_keeps_its_scores(
    build: BuildWorld,
) -> None:
    world = build(**SHARED)
    score_all(world, "20260131-a")
    before = {
        (row["input_hash"], row["task"]): row["probability"]
        for row in read_published(world.scores_dir).to_pylist()
    }
    rows = [*planted_rows("two", ROWS, 0, labelled=False), *planted_rows("two", 3, 77, labelled=False)][::-1]
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


def test_a_row_that_one_task_knows_is_judged_for_the_others_and_keeps_what_is_known(
    build: BuildWorld,
) -> None:
    world = build(**SHARED)
    scorer, units = world.scorer(), world.units()
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    put_record(
        world.scores_dir,
        run_record(
            world.scores_dir,
            ScoringRun("20260131-a", champion, 0.0, None),
            units,
            [scorer.outcome(unit) for unit in units],
        ),
    )
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
