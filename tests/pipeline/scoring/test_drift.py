"""Stable scores show no drift, moved ones do."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.score_summary import drift_lines
from models.serialization.bundle import write_bundle
from pipeline.config.loading import build_config
from pipeline.errors import DamagedInputError
from pipeline.evaluation.psi import psi
from pipeline.evaluation.score_reference import (
    PROBABILITY_BINS,
    add_profile,
    build_profile,
)
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.inference.predictor import Predictor, build_predictor, bundle_description
from pipeline.registry.version_files import VersionFiles
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.drift import ALL_MARKETS, MIN_ROWS, compare_profiles
from pipeline.scoring.label_store import publish_unit
from pipeline.scoring.scoring_record import ScoringRecord, ScoringRun, build_scoring_record, put_record
from pipeline.scoring.unit_manifest import UnitInput
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit
from tests.support.bundles import reference_of
from tests.support.planted import TRAINING, planted_config, planted_rows
from tests.support.score_partitions import unit_manifest

DRAW = np.random.default_rng(3)


def profile(probability_N: np.ndarray, market: str = "us") -> Any:
    return build_profile(probability_N, (probability_N > 0.5).astype(int), [market] * len(probability_N), 2)


def test_psi_equals_its_definition() -> None:
    counts, reference = [30, 50, 20], [40, 40, 20]
    p, q = ([(one + 0.5) / (100 + 1.5) for one in side] for side in (counts, reference))
    assert psi(reference, counts) == pytest.approx(
        sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    )
    assert psi(counts, counts) == 0 and psi([0, 0, 9], [9, 0, 0]) > 1


def test_profile_counts_every_row_in_its_market_and_bin() -> None:
    found = build_profile(
        np.array([0.0, 0.049, 0.05, 1.0]), np.array([0, 1, 1, 2]), ["us", "us", "es", None], 3
    )
    assert found["us"]["probability"] == [2] + [0] * (PROBABILITY_BINS - 1) and found["us"]["labels"] == [
        1,
        1,
        0,
    ]
    assert found["es"]["probability"][1] == 1 and found[""]["probability"][-1] == 1
    total: Any = {}
    add_profile(total, found)
    add_profile(total, found)
    assert total["us"]["labels"] == [2, 2, 0] and set(total) == {"us", "es", ""}


def test_drift_is_found_by_task_and_market() -> None:
    same = {"two": profile(DRAW.beta(2, 2, 4_000)), "three": profile(DRAW.beta(2, 2, 4_000))}
    mixed: Any = {}
    add_profile(mixed, profile(DRAW.beta(2, 2, 4_000)))
    add_profile(mixed, profile(DRAW.beta(5, 1, 4_000), "es"))
    before: Any = {}
    add_profile(before, profile(DRAW.beta(2, 2, 4_000)))
    add_profile(before, profile(DRAW.beta(2, 2, 4_000), "es"))
    found = compare_profiles({"two": mixed, "three": same["three"]}, {"two": before, "three": same["two"]})
    lines = {(row.task, row.market): row.psi for row in found}
    assert lines.keys() == {("two", ALL_MARKETS), ("two", "us"), ("two", "es"), ("three", ALL_MARKETS)}
    assert (
        lines["three", ALL_MARKETS] < 0.05
        and lines["two", "us"] < 0.05
        and lines["two", "es"] > 0.5
        and lines["two", ALL_MARKETS] > 0.1
    )


def test_few_rows_or_other_labels_are_not_compared() -> None:
    few, many = profile(DRAW.uniform(size=MIN_ROWS - 1)), profile(DRAW.uniform(size=1_000))
    three = build_profile(DRAW.uniform(size=1_000), DRAW.integers(0, 3, 1_000), ["us"] * 1_000, 3)
    assert (
        compare_profiles({"two": few}, {"two": many})
        == compare_profiles({"two": many}, {})
        == compare_profiles({"two": three}, {"two": many})
        == []
    )


@pytest.fixture(scope="module")
def predictor(tiny_llama: Path) -> Predictor:
    return build_predictor(build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test"))


@pytest.fixture(scope="module")
def reference(predictor: Predictor) -> dict[str, Any]:
    tables = {task: pa.Table.from_pylist(planted_rows(task, 300, 1), ROW_SCHEMA) for task in ("two", "three")}
    return reference_of(predictor, tables).to_json()


class Runs:
    """Runs over one published unit each, of a version with a reference."""

    def __init__(self, root: Path, predictor: Predictor, reference: dict[str, Any]) -> None:
        self.root = root / "scores"
        bundle_dir, tokenizer_dir = root / "artifacts" / "bundle", predictor.backbone.folder
        bundle_dir.parent.mkdir(parents=True)
        config = build_config(planted_config(root, str(tokenizer_dir)), "test")
        description = bundle_description(predictor, config, TRAINING)
        sha256 = write_bundle(bundle_dir, description, {}, tokenizer_dir, reference)
        self.champion = VersionFiles("1", bundle_dir, sha256)

    def run(
        self, name: str, probability_N: np.ndarray, refuse: float | None = None, error: str = ""
    ) -> ScoringRecord:
        manifest = unit_manifest(name, task="two", profiles={"two": profile(probability_N)})
        if not error:
            publish_unit(self.root, manifest, SCORE_SCHEMA.empty_table())
        unit = WorkUnit("two", f"{name}.parquet", "1", name, None)
        record = build_scoring_record(
            self.root,
            ScoringRun(name, self.champion, 0.0, 1.0, refuse),
            [unit],
            [UnitResult(name, unit.path, error=error)],
        )
        put_record(self.root, record)
        return record


def test_run_is_compared_with_last_accepted_run_and_test_rows(
    tmp_path: Path, predictor: Predictor, reference: dict[str, Any]
) -> None:
    runs = Runs(tmp_path, predictor, reference)
    first = runs.run("20260101", DRAW.beta(2, 2, 4_000))
    assert first.drift.against_last_run == ()
    assert [row.task for row in first.drift.against_test_rows] == ["two"]
    assert first.accepted and first.drift.largest_psi == first.drift.against_test_rows[0].psi
    moved = runs.run("20260102", DRAW.beta(9, 1, 4_000), refuse=0.25)
    assert not moved.accepted and moved.drift.against_last_run[0].psi > 0.25
    assert any(
        "scores of two, all markets, drifted from the last run: stability index" in line
        for line in drift_lines(moved, 0.1)
    )
    assert drift_lines(moved, 99.0) == []
    again = runs.run("20260103", DRAW.beta(2, 2, 4_000))
    assert again.drift.against_last_run[0].psi < 0.05, "compared with the refused run"


def test_run_with_failed_unit_is_not_accepted(
    tmp_path: Path, predictor: Predictor, reference: dict[str, Any]
) -> None:
    record = Runs(tmp_path, predictor, reference).run(
        "20260101", DRAW.uniform(size=10), error="part-0.parquet: poison"
    )
    assert (
        not record.accepted
        and record.units_failed[0].error == "part-0.parquet: poison"
        and record.unit_ids == ()
    )


def test_manifest_with_wrong_counts_ends_the_run(
    tmp_path: Path, predictor: Predictor, reference: dict[str, Any]
) -> None:
    runs = Runs(tmp_path, predictor, reference)
    manifest = unit_manifest("p", task="two", input=UnitInput("p", "1", None, 3))
    publish_unit(runs.root, manifest, SCORE_SCHEMA.empty_table())
    with pytest.raises(DamagedInputError, match="row counts disagree in the manifest of unit p: 3 rows in"):
        build_scoring_record(
            runs.root,
            ScoringRun("r", runs.champion, 0.0, 1.0, None),
            [WorkUnit("two", "p", "1", "p", None)],
            [],
        )
