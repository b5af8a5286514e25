"""Pairs that recent runs scored are not scored again and keep their scores to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.inference.known_scores import NO_CACHED_SCORES, CachedScores, hashes_to_arrow, input_hashes
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import score_cache
from pipeline.scoring.label_store import (
    publish_unit,
    read_manifests,
    read_published,
)
from pipeline.scoring.score_cache import ScoreCache, find_cached_files
from pipeline.scoring.scoring_record import last_accepted_record, put_record, read_run
from tests.support.planted import planted_rows, write_rows
from tests.support.score_partitions import unit_manifest
from tests.support.scoring_world import ROWS, World

TASK = Task(name="two", labels=("no", "yes"), relevant_from=1, template="{query} {ad_title}")


@pytest.fixture
def world(tmp_path: Path, tiny_llama: Path) -> World:
    """A world with one finished run of two units."""
    world = World(tmp_path, tiny_llama)
    score_day(world, "20260131-a")
    return world


def score_day(world: World, run: str) -> tuple[int, int]:
    """Score all units that are left; return (labels, rows reused)."""
    _, results = world.score_run(run)
    return sum(one.labels for one in results), sum(one.reused for one in results)


def next_day(world: World, seed: int, new_rows: int) -> list[str]:
    """Write the rows of unit `seed` again with other ids and new rows; return their texts."""
    rows = [
        *planted_rows("two", ROWS, seed, labeled=False),
        *planted_rows("two", new_rows, 77, labeled=False),
    ][::-1]
    for number, row in enumerate(rows):
        row["row_id"] = f"again-{number}"
    write_rows(rows, world.root / "to_score" / "task=two" / "part-7-again.parquet")
    return [str(row["query"]) + str(row["ad_title"]) for row in rows]


def test_known_pairs_are_reused_exactly_and_new_ones_scored(world: World) -> None:
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


def test_pairs_are_reused_across_the_last_runs_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(2, 5):  # other pairs each day, and the inputs of the days before are gone
        for path in (world.root / "to_score").rglob("*.parquet"):
            path.unlink()
        write_rows(
            planted_rows("two", ROWS, 30 + day, labeled=False),
            world.root / "to_score" / "task=two" / f"part-{day}.parquet",
        )
        assert score_day(world, f"2026020{day}-a") == (ROWS, 0)
    next_day(world, 0, 1)
    assert [world.scorer().score_unit(unit).reused for unit in world.units()] == [ROWS]
    monkeypatch.setattr(score_cache, "MAX_RUNS", 3)
    assert sum(file.rows for file in find_cached_files(world.scores_dir, world.sha256)["two"]) == 3 * ROWS


def test_run_without_new_units_adds_nothing_to_the_cache(world: World) -> None:
    files, last = find_cached_files(world.scores_dir, world.sha256), last_accepted_record(world.scores_dir)
    assert last is not None and last.unit_ids
    put_record(world.scores_dir, replace(last, run="20260201-a"))
    assert find_cached_files(world.scores_dir, world.sha256) == files


@pytest.mark.parametrize("damage", ["removed", "altered"])
def test_missing_or_altered_labels_are_not_reused(world: World, damage: str) -> None:
    for manifest in read_manifests(world.scores_dir):
        path = world.scores_dir / manifest.label_files[0].path
        path.unlink() if damage == "removed" else path.write_bytes(path.read_bytes()[:-1] + b"x")
    next_day(world, 0, 0)
    assert [world.scorer().score_unit(unit).reused for unit in world.units()] == [0]


def test_unit_with_removed_manifest_is_scored_again(world: World) -> None:
    scorer = world.scorer()
    (first, _) = read_manifests(world.scores_dir)
    (world.scores_dir / "manifests" / f"{first.unit_id}.json").unlink()
    (again,) = world.units()
    result = world.scorer().score_unit(again)
    assert (result.error, result.labels, result.reused) == ("", ROWS, 0)
    assert scorer.cache.files["two"]


def test_labels_of_another_model_are_not_reused(world: World) -> None:
    assert set(find_cached_files(world.scores_dir, world.sha256)) == {"two"}
    assert (
        find_cached_files(world.scores_dir, "0" * 64) == {}
        and find_cached_files(world.root / "nowhere", world.sha256) == {}
    )


def test_labels_without_hashes_are_readable_but_not_reused(world: World) -> None:
    old = read_published(world.scores_dir).drop_columns(["input_hash"])
    ids = pa.array([f"old-{row_id}" for row_id in old["row_id"].to_pylist()])
    old = old.set_column(old.schema.get_field_index("row_id"), "row_id", ids)
    publish_unit(world.scores_dir, unit_manifest("two-old", bundle_sha256=world.sha256), old)
    assert read_published(world.scores_dir).column("input_hash").null_count == old.num_rows
    (manifest,) = (one for one in read_manifests(world.scores_dir) if one.unit_id == "two-old")
    scorer = world.scorer()
    assert ScoreCache(scorer.scores, {"two": manifest.label_files}).load_task("two") is NO_CACHED_SCORES


def test_hash_covers_exactly_the_texts_of_the_task() -> None:
    row = planted_rows("two", 1, 1, labeled=False)[0]
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


def test_hashes_ending_in_zeros_are_found() -> None:
    hashes = np.array([bytes([n]) * 8 + bytes(8) for n in range(1, 6)] + [bytes(15) + b"\1"], "S16")
    column = hashes_to_arrow(hashes)
    assert column.type == pa.binary(16) and [len(one) for one in column.to_pylist()] == [16] * 6
    order = np.sort(np.array(column.to_pylist(), "S16"))
    known = CachedScores(order, np.arange(6.0), np.arange(6), np.arange(6.0))
    assert (known.hash_M[known.find(hashes)] == hashes).all()
    assert known.find(np.array([b"\xff" * 16, b"nothing"], "S16")).tolist() == [-1, -1]
    assert NO_CACHED_SCORES.find(hashes).tolist() == [-1] * 6
