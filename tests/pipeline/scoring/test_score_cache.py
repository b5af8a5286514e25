"""Pairs that the runs before have judged are not judged again, and keep their scores to the bit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.inference.known_scores import NOTHING_KNOWN, Known, hashes_as_arrow, input_hashes
from pipeline.registry.version_files import FetchedVersion
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import score_cache
from pipeline.scoring.label_store import (
    last_record,
    publish_partition,
    put_record,
    read_manifests,
    read_published,
    read_run,
)
from pipeline.scoring.run_record import ScoringRun, run_record
from pipeline.scoring.score_cache import ScoreCache, cached_files
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS, World

TASK = Task(name="two", labels=("no", "yes"), relevant_from=1, template="{query} {ad_title}")


@pytest.fixture
def world(tmp_path: Path, tiny_llama: Path) -> World:
    """A run of two units is through."""
    world = World(tmp_path, tiny_llama)
    score_day(world, "20260131-a")
    return world


def score_day(world: World, run: str) -> tuple[int, int]:
    """(labels, those reused) of a run over what is not scored yet."""
    scorer, units = world.scorer(), world.units()
    outcomes = [scorer.outcome(unit) for unit in units]
    assert not any(one.error for one in outcomes)
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    put_record(
        world.scores_dir, run_record(world.scores_dir, ScoringRun(run, champion, 0.0, None), units, outcomes)
    )
    return sum(one.labels for one in outcomes), sum(one.reused for one in outcomes)


def next_day(world: World, seed: int, new_rows: int) -> list[str]:
    """The rows of unit `seed` come again under other ids and in another order, with new ones among them;
    their ids.
    """
    rows = [
        *planted_rows("two", ROWS, seed, labelled=False),
        *planted_rows("two", new_rows, 77, labelled=False),
    ][::-1]
    for number, row in enumerate(rows):
        row["row_id"] = f"again-{number}"
    write_rows(rows, world.root / "to_score" / "task=two" / "part-7-again.parquet")
    return [str(row["query"]) + str(row["ad_title"]) for row in rows]


def test_a_pair_of_the_run_before_is_reused_to_the_bit_and_new_ones_are_judged(world: World) -> None:
    before = {row["input_hash"]: row for row in read_published(world.scores_dir).to_pylist()}
    next_day(world, 0, 3)
    assert score_day(world, "20260201-a") == (ROWS + 3, ROWS)
    again = [row for row in read_run(world.scores_dir).to_pylist() if row["input_hash"] in before]
    assert len(again) == ROWS
    for row in again:
        same = before[row["input_hash"]]
        assert all(
            row[name] == same[name]
            for name in ("probability", "label", "label_name", "expected_grade", "decision")
        )
    alone = {row["row_id"]: row["probability"] for row in read_run(world.scores_dir).to_pylist()}
    assert len(alone) == ROWS + 3 and all(np.isfinite(list(alone.values())))


def test_a_pair_that_was_away_for_a_few_runs_is_reused_and_no_run_too_far_back_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(2, 5):  # other pairs each day, and the inputs of the days before are gone
        for path in (world.root / "to_score").rglob("*.parquet"):
            path.unlink()
        write_rows(
            planted_rows("two", ROWS, 30 + day, labelled=False),
            world.root / "to_score" / "task=two" / f"part-{day}.parquet",
        )
        assert score_day(world, f"2026020{day}-a") == (ROWS, 0)
    next_day(world, 0, 1)
    assert [world.scorer().outcome(unit).reused for unit in world.units()] == [ROWS]
    monkeypatch.setattr(score_cache, "MAX_RUNS", 3)
    assert sum(file["rows"] for file in cached_files(world.scores_dir, world.sha256)["two"]) == 3 * ROWS


def test_a_run_that_found_everything_scored_adds_nothing_to_what_is_known(world: World) -> None:
    files, last = cached_files(world.scores_dir, world.sha256), last_record(world.scores_dir)
    assert last is not None and last["partitions"]
    put_record(world.scores_dir, {**last, "run": "20260201-a"})
    assert cached_files(world.scores_dir, world.sha256) == files


@pytest.mark.parametrize("damage", ["removed", "altered"])
def test_labels_that_are_gone_or_altered_are_not_reused(world: World, damage: str) -> None:
    for manifest in read_manifests(world.scores_dir):
        path = world.scores_dir / manifest["files"][0]["path"]
        path.unlink() if damage == "removed" else path.write_bytes(path.read_bytes()[:-1] + b"x")
    next_day(world, 0, 0)
    assert [world.scorer().outcome(unit).reused for unit in world.units()] == [0]


def test_a_unit_whose_manifest_was_removed_is_scored_again_and_the_others_are_reused(world: World) -> None:
    unit = world.scorer()
    (first, _) = read_manifests(world.scores_dir)
    (world.scores_dir / "manifests" / f"{first['partition']}.json").unlink()
    (again,) = world.units()
    outcome = world.scorer().outcome(again)
    assert (outcome.error, outcome.labels, outcome.reused) == ("", ROWS, 0) and unit.cache.files["two"]


def test_labels_of_another_model_are_not_reused(world: World) -> None:
    assert set(cached_files(world.scores_dir, world.sha256)) == {"two"}
    assert (
        cached_files(world.scores_dir, "0" * 64) == {}
        and cached_files(world.root / "nowhere", world.sha256) == {}
    )


def test_labels_of_releases_without_hashes_are_read_and_not_reused(world: World) -> None:
    old = read_published(world.scores_dir).drop_columns(["input_hash"])
    publish_partition(world.scores_dir, "two-old", old, {"bundle_sha256": world.sha256})
    assert read_published(world.scores_dir).column("input_hash").null_count == old.num_rows
    (manifest,) = (one for one in read_manifests(world.scores_dir) if one["partition"] == "two-old")
    scorer = world.scorer()
    assert ScoreCache(scorer.scores, {"two": manifest["files"]}).of_task("two") is NOTHING_KNOWN


def test_a_hash_is_of_what_the_task_reads_and_of_nothing_else() -> None:
    row = planted_rows("two", 1, 1, labelled=False)[0]
    turned = {"query": row["ad_title"], "ad_title": row["query"]}
    changes = [
        {},
        {"row_id": "x"},
        {"market": "fr"},
        {"landing_page": "l"},
        {"query": "q"},
        {"ad_title": "t"},
        turned,
    ]
    hashes = input_hashes(pa.Table.from_pylist([row | change for change in changes], ROW_SCHEMA), TASK)
    assert len(set(hashes[:4].tolist())) == 1 and len(set(hashes[3:].tolist())) == 4


def test_hashes_that_end_in_zeros_survive_and_are_found() -> None:
    hashes = np.array([bytes([n]) * 8 + bytes(8) for n in range(1, 6)] + [bytes(15) + b"\1"], "S16")
    column = hashes_as_arrow(hashes)
    assert column.type == pa.binary(16) and [len(one) for one in column.to_pylist()] == [16] * 6
    order = np.sort(np.array(column.to_pylist(), "S16"))
    known = Known(order, np.arange(6.0), np.arange(6), np.arange(6.0))
    assert (known.hash_M[known.find(hashes)] == hashes).all()
    assert known.find(np.array([b"\xff" * 16, b"nothing"], "S16")).tolist() == [-1, -1]
    assert NOTHING_KNOWN.find(hashes).tolist() == [-1] * 6
