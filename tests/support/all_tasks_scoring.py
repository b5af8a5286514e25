"""Scoring of every row for every task, and its comparison with plain scoring."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from pipeline.inference.calibration import Calibration
from pipeline.inference.labels import ScoringContext, plan_scores
from pipeline.inference.predictor import Predictor
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.label_store import read_manifests
from pipeline.scoring.scoring_record import put_record
from tests.support.scoring_world import World

MTL = {"method": "mtl_lora", "target_modules": ["q_proj", "v_proj"], "rank": 4}
SHARED = {"adapter": {**MTL, "task_layers": 1}}  # of 4 layers the last one knows tasks: 5 of 8 layers
EVERY_LAYER = {"adapter": MTL}
CLOSE = 1e-5
BuildWorld = Callable[..., World]


def unlike_tasks(predictor: Predictor) -> None:
    """Every trained number stirred, and each task calibrated in its own way."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in predictor.model.trainable_state().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    predictor.calibration["two"] = Calibration(temperature=3.0, relevant_at=0.5)
    predictor.calibration["three"] = Calibration(
        method="platt", slope=0.5, intercept=0.2, irrelevant_below=0.6
    )


def all_inputs(world: World) -> pa.Table:
    """Return all rows that there are to score."""
    files = sorted((world.root / "to_score").rglob("*.parquet"))
    return pa.concat_tables(ds.dataset(file).to_table() for file in files).cast(ROW_SCHEMA)


def score_all(world: World, run: str = "", expect_error: str = "") -> tuple[UnitScorer, dict[str, Any]]:
    """(the scorer, the run's record) of all units that are left."""
    scorer, units = world.scorer(), world.units(all_tasks=True)
    outcomes = [scorer.score_unit(unit) for unit in units]
    assert all(expect_error in one.error if expect_error else not one.error for one in outcomes), outcomes
    record = world.build_record(run or "20260131-a", units, outcomes)
    put_record(world.scores_dir, record)
    return scorer, record.to_json()


def manifests_as_json(world: World) -> list[dict[str, Any]]:
    """Return the published manifests as they are recorded."""
    return [manifest.to_json() for manifest in read_manifests(world.scores_dir)]


def check_as_plain(world: World, published: pa.Table) -> None:
    """Each row has one label of each task, that which plain scoring gives."""
    found = {(row["row_id"], row["task"]): row for row in published.to_pylist()}
    inputs, plain = all_inputs(world), world.scorer().predictor
    assert len(found) == published.num_rows == inputs.num_rows * 2
    for task in plain.tasks:
        context = ScoringContext(4_096, "1", world.sha256)
        for expected in plan_scores(plain, inputs, task, context).run().to_pylist():
            row = found[expected["row_id"], task.name]
            assert row["probability"] == pytest.approx(expected["probability"], abs=CLOSE)
            assert row["expected_grade"] == pytest.approx(expected["expected_grade"], abs=CLOSE)
            assert all(
                row[name] == expected[name]
                for name in ("label", "label_name", "decision", "input_hash", "bundle_sha256")
            )
    decisions = {
        task: {row["decision"] for (_, of), row in found.items() if of == task} for task in ("two", "three")
    }
    assert decisions["two"] <= {"relevant", "abstain"} and decisions["three"] <= {"irrelevant", "abstain"}, (
        "by each task's own thresholds"
    )
    assert {"relevant", "irrelevant"} & (decisions["two"] | decisions["three"])
