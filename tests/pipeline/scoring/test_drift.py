"""Scores that are spread as before are left alone, those that moved are told; canary rows tell whether a
machine judges as the evaluation did.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.score_summary import drift_lines
from pipeline.config.loading import build_config
from pipeline.errors import DamagedInputError
from pipeline.evaluation.psi import psi
from pipeline.evaluation.score_reference import (
    BINS,
    add_profile,
    build_reference,
    canary_difference,
    profile_of,
    read_reference,
)
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.inference.predictor import Judge, fresh_judge
from pipeline.inference.probabilities import judge_rows
from pipeline.registry.version_files import FetchedVersion
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.actor import Outcome
from pipeline.scoring.drift import MIN_ROWS, WHOLE, drift_rows
from pipeline.scoring.label_store import publish_partition
from pipeline.scoring.run_record import ScoringRun, run_record
from pipeline.scoring.work_units import Unit
from pipeline.storage.filesystem import write_json
from tests.support.planted import planted_config, planted_rows

DRAW = np.random.default_rng(3)


def profile(probability_N: np.ndarray, market: str = "us") -> Any:
    return profile_of(probability_N, (probability_N > 0.5).astype(int), [market] * len(probability_N), 2)


def test_the_index_is_the_sum_over_bins_of_its_definition() -> None:
    counts, reference = [30, 50, 20], [40, 40, 20]
    p, q = ([(one + 0.5) / (100 + 1.5) for one in side] for side in (counts, reference))
    assert psi(reference, counts) == pytest.approx(
        sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    )
    assert psi(counts, counts) == 0 and psi([0, 0, 9], [9, 0, 0]) > 1


def test_a_profile_counts_every_row_in_its_market_and_bin() -> None:
    found = profile_of(np.array([0.0, 0.049, 0.05, 1.0]), np.array([0, 1, 1, 2]), ["us", "us", "es", None], 3)
    assert found["us"]["probability"] == [2] + [0] * (BINS - 1) and found["us"]["labels"] == [1, 1, 0]
    assert found["es"]["probability"][1] == 1 and found[""]["probability"][-1] == 1
    total: Any = {}
    add_profile(total, found)
    add_profile(total, found)
    assert total["us"]["labels"] == [2, 2, 0] and set(total) == {"us", "es", ""}


def test_like_scores_are_stable_and_moved_ones_are_told_by_task_and_market() -> None:
    same = {"two": profile(DRAW.beta(2, 2, 4_000)), "three": profile(DRAW.beta(2, 2, 4_000))}
    mixed: Any = {}
    add_profile(mixed, profile(DRAW.beta(2, 2, 4_000)))
    add_profile(mixed, profile(DRAW.beta(5, 1, 4_000), "es"))
    before: Any = {}
    add_profile(before, profile(DRAW.beta(2, 2, 4_000)))
    add_profile(before, profile(DRAW.beta(2, 2, 4_000), "es"))
    found = drift_rows({"two": mixed, "three": same["three"]}, {"two": before, "three": same["two"]})
    lines = {(one["task"], one["market"]): one["psi"] for one in found}
    assert lines.keys() == {("two", WHOLE), ("two", "us"), ("two", "es"), ("three", WHOLE)}
    assert (
        lines["three", WHOLE] < 0.05
        and lines["two", "us"] < 0.05
        and lines["two", "es"] > 0.5
        and lines["two", WHOLE] > 0.1
    )


def test_few_rows_and_unknown_tasks_and_other_labels_tell_nothing() -> None:
    few, many = profile(DRAW.uniform(size=MIN_ROWS - 1)), profile(DRAW.uniform(size=1_000))
    three = profile_of(DRAW.uniform(size=1_000), DRAW.integers(0, 3, 1_000), ["us"] * 1_000, 3)
    assert (
        drift_rows({"two": few}, {"two": many})
        == drift_rows({"two": many}, {})
        == drift_rows({"two": three}, {"two": many})
        == []
    )


@pytest.fixture(scope="module")
def judge(tiny_llama: Path) -> Judge:
    return fresh_judge(build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test"))


@pytest.fixture(scope="module")
def reference(judge: Judge) -> dict[str, Any]:
    tables = {task: pa.Table.from_pylist(planted_rows(task, 300, 1), ROW_SCHEMA) for task in ("two", "three")}
    said = {task.name: judge_rows(judge, tables[task.name], task, 4_096) for task in judge.tasks}
    return build_reference(judge, "b" * 64, tables, said, 4_096)


def test_canary_rows_are_judged_the_same_by_the_same_model_and_otherwise_by_another(
    judge: Judge, reference: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    import torch

    write_json(tmp_path / "reference.json", reference)
    read = read_reference(tmp_path / "reference.json", "b" * 64)
    assert canary_difference(judge, read, 4_096) < 1e-6
    other = fresh_judge(build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test"))
    with torch.no_grad():
        other.model.heads.weight_KD.mul_(1.5)
    assert canary_difference(other, read, 4_096) > 1e-3
    with pytest.raises(DamagedInputError, match="is not the reference of bundle cccc"):
        read_reference(tmp_path / "reference.json", "c" * 64)


class Runs:
    """Runs over one published partition each, of a version with a reference."""

    def __init__(self, root: Path, reference: dict[str, Any]) -> None:
        self.root = root / "scores"
        (root / "artifacts").mkdir(parents=True)
        self.champion = FetchedVersion("1", root / "artifacts" / "bundle", "b" * 64)
        write_json(self.champion.reference_path, reference)

    def run(
        self, name: str, probability_N: np.ndarray, refuse: float | None = None, error: str = ""
    ) -> dict[str, Any]:
        facts = {
            "task": "two",
            "input": {"rows": 0},
            "bundle_sha256": "b" * 64,
            "profile": profile(probability_N),
        }
        if not error:
            publish_partition(self.root, name, SCORE_SCHEMA.empty_table(), facts)
        unit = Unit("two", f"{name}.parquet", "1", name, None)
        record = run_record(
            self.root,
            ScoringRun(name, self.champion, 0.0, refuse),
            [unit],
            [Outcome(name, unit.path, error=error)],
        )
        (self.root / "runs").mkdir(exist_ok=True, parents=True)
        write_json(self.root / "runs" / f"{name}.json", record)
        return record


def test_a_run_is_held_against_the_last_accepted_one_and_the_version_s_test_rows(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    runs = Runs(tmp_path, reference)
    first = runs.run("20260101", DRAW.beta(2, 2, 4_000))
    assert first["drift"]["against_last_run"] == [] and [
        one["task"] for one in first["drift"]["against_test_rows"]
    ] == ["two"]
    assert first["accepted"] and first["largest_drift"] == first["drift"]["against_test_rows"][0]["psi"]
    moved = runs.run("20260102", DRAW.beta(9, 1, 4_000), refuse=0.25)
    assert not moved["accepted"] and moved["drift"]["against_last_run"][0]["psi"] > 0.25
    assert any(
        "scores of two, all markets, moved against the last run: stability index" in line
        for line in drift_lines(moved, 0.1)
    )
    assert drift_lines(moved, 99.0) == []
    again = runs.run("20260103", DRAW.beta(2, 2, 4_000))
    assert again["drift"]["against_last_run"][0]["psi"] < 0.05, "held against the run that was refused"


def test_a_run_with_a_failed_unit_is_not_accepted_and_names_it(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    record = Runs(tmp_path, reference).run("20260101", DRAW.uniform(size=10), error="part-0.parquet: poison")
    assert (
        not record["accepted"]
        and record["units_failed"][0]["error"] == "part-0.parquet: poison"
        and record["partitions"] == []
    )


def test_a_manifest_whose_rows_do_not_add_up_ends_the_run(tmp_path: Path, reference: dict[str, Any]) -> None:
    runs = Runs(tmp_path, reference)
    publish_partition(
        runs.root, "p", SCORE_SCHEMA.empty_table(), {"task": "two", "input": {"rows": 3}, "profile": {}}
    )
    with pytest.raises(DamagedInputError, match="partition p has other rows than labels and errors together"):
        run_record(
            runs.root, ScoringRun("r", runs.champion, 0.0, None), [Unit("two", "p", "1", "p", None)], []
        )
