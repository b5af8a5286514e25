"""Recorded form of results."""

import json
import math

import numpy as np
import pytest

from pipeline.evaluation.results import (
    CaseResult,
    Comparison,
    Evaluation,
    FloorRows,
    GateOutcome,
    Interval,
    MetricsSummary,
    SingleTaskGain,
    SliceDifference,
    SliceResult,
    TaskComparison,
    TaskEvaluation,
)

PR_AUC = {"pr_auc": Interval(0.5, 0.4, 0.6)}
UNDEFINED = Interval(math.nan, math.nan, math.nan)


def evaluation(num_tasks: int, gain: SingleTaskGain | None = None) -> Evaluation:
    slices = (SliceResult("market", "us", 30, 10, PR_AUC), SliceResult("market", "de", 3, 1, None))
    systems = {"model": {**PR_AUC, "defect_rate": UNDEFINED}, "lexical": PR_AUC, "untrained": PR_AUC}
    task = TaskEvaluation(33, 9, 11, systems, PR_AUC["pr_auc"], slices, "digest")
    tasks = {f"task-{number}": task for number in range(num_tasks)}
    macro = {system: PR_AUC["pr_auc"] for system in systems}
    summary = MetricsSummary(tasks, macro, "task-0", PR_AUC["pr_auc"])
    return Evaluation("sha", "data", summary, (), gain, floor_rows={"task-0": FloorRows(2, 3)})


@pytest.mark.parametrize("gain", [None, SingleTaskGain({"task-0": "alone"}, 0.1)])
def test_evaluation_survives_json(gain: SingleTaskGain | None) -> None:
    recorded = json.loads(json.dumps(evaluation(2, gain).to_json(), allow_nan=False))
    assert Evaluation.from_json(recorded).to_json() == recorded
    assert recorded["tasks"]["task-0"]["model"]["defect_rate"] == {"value": None, "low": None, "high": None}
    assert recorded["tasks"]["task-0"]["slices"][1] == {
        "by": "market",
        "slice": "de",
        "rows": 3,
        "relevant": 1,
    }


def test_only_multitask_evaluations_record_a_gain() -> None:
    assert "single_task" not in evaluation(1).to_json()
    assert evaluation(2).to_json()["single_task"] is None


def test_comparison_has_its_recorded_keys() -> None:
    part = SliceDifference("market", "us", 30, Interval(-0.1, -0.2, 0.0))
    task = TaskComparison(PR_AUC, PR_AUC, PR_AUC, np.zeros(3), (part,))
    recorded = Comparison({"two": task}, ("three",), Interval(0.1, 0.0, 0.2), 1.5).to_json()
    assert list(recorded) == ["tasks", "not_compared", "macro_pr_auc_difference", "speed_ratio"]
    assert list(recorded["tasks"]["two"]) == ["challenger", "champion", "difference", "slices"]
    assert recorded["tasks"]["two"]["slices"] == [
        {
            "by": "market",
            "slice": "us",
            "rows": 30,
            "difference": {"value": -0.1, "low": -0.2, "high": 0.0},
        }
    ]


def test_case_result_survives_json() -> None:
    case = CaseResult("two", "negation", "is not matched better", 0.2, 0.05)
    assert list(case.to_json()) == ["task", "case", "told", "value", "at_most"]
    assert CaseResult.from_json(case.to_json()) == case and not case.passed


def test_gate_outcome_reads_a_recorded_verdict() -> None:
    case = CaseResult("two", "negation", "is not matched better", 0.01, 0.05)
    recorded = {
        "version": "2",
        "against": "1",
        "passed": True,
        "rules": [{"rule": "throughput", "passed": True, "reason": "1.02"}],
        "behaviour": [case.to_json()],
    }
    outcome = GateOutcome.from_json(recorded)
    assert outcome.passed and outcome.against == "1"
    assert outcome.rules[0].rule == "throughput" and outcome.cases == [case]
