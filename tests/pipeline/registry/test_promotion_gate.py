"""Each rule of the promotion gate on constructed comparisons."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.config.gates import PromotionConfig
from pipeline.evaluation.results import CaseResult, Comparison, Interval, SliceDifference, TaskComparison
from pipeline.registry.promotion_gate import Evidence, Verdict, judge_version


def gap(value: float, spread: float = 0.01) -> Interval:
    return Interval(value, value - spread, value + spread)


def compared(
    pr_auc: float = 0.03, error: float = 0.0, spread: float = 0.01, slices: tuple[SliceDifference, ...] = ()
) -> TaskComparison:
    difference = {"pr_auc": gap(pr_auc, spread), "calibration_error": gap(error)}
    return TaskComparison({}, {}, difference, np.full(5, pr_auc), slices)


GOOD = Comparison({"two": compared(), "three": compared()}, (), gap(0.03), 1.0)
CASE = CaseResult("two", "upper case", "capitals move it little", 0.05, 0.15)


def verdict(
    comparison: Comparison = GOOD,
    cases: tuple[CaseResult, ...] = (CASE,),
    data_passed: bool = True,
    **settings: Any,
) -> Verdict:
    return judge_version("5", "3", Evidence(comparison, cases, data_passed), PromotionConfig(**settings))


def test_better_version_passes() -> None:
    found = verdict()
    assert found.passed and found.refusals() == [] and len(found.rules) == 8
    assert Verdict.from_json(found.to_json()) == found and found.to_json()["passed"] is True


def collapsed(high: float) -> tuple[SliceDifference, ...]:
    return (SliceDifference("market", "jp", 80, Interval(-0.2, -0.3, high)),)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "non-inferior on every task",
        {"comparison": replace(GOOD, tasks={"two": compared(), "three": compared(-0.06)})},
        r"three -0\.060",
    ),
    (
        "non-inferior on every task",
        {"comparison": replace(GOOD, tasks={"two": compared(0.01, spread=0.07)})},
        r"two \+0\.010 \[-0\.060",
    ),
    (
        "better on macro PR-AUC",
        {"comparison": replace(GOOD, macro_pr_auc=gap(-0.001))},
        r"macro PR-AUC -0\.001",
    ),
    ("better on macro PR-AUC", {"min_macro_gain": 0.05}, r"required: more than \+0\.050"),
    ("better on macro PR-AUC", {"comparison": replace(GOOD, macro_pr_auc=gap(float("nan")))}, "nan"),
    (
        "calibration no worse",
        {"comparison": replace(GOOD, tasks={"two": compared(error=0.05)})},
        r"two \+0\.050",
    ),
    (
        "no slice collapsed",
        {"comparison": replace(GOOD, tasks={"two": compared(slices=collapsed(-0.15))})},
        "two, market jp: -0.200 on 80 rows",
    ),
    (
        "no slice collapsed",
        {"comparison": replace(GOOD, tasks={"two": compared(slices=collapsed(float("nan")))})},
        "two, market jp",
    ),
    (
        "every task of the champion",
        {"comparison": replace(GOOD, not_compared=("four",))},
        "not compared.*four",
    ),
    ("throughput", {"comparison": replace(GOOD, speed_ratio=0.7)}, "0.70 of the champion's"),
    (
        "behaviour",
        {"cases": (CASE, replace(CASE, case="negation", value=0.3))},
        "two, negation: 0.300, at most 0.15",
    ),
    ("data gate", {"data_passed": False}, "did not pass"),
]


@pytest.mark.parametrize(("rule", "changed", "reason"), REFUSED)
def test_each_rule_refuses_with_its_reason(rule: str, changed: dict[str, Any], reason: str) -> None:
    found = verdict(**changed)
    assert not found.passed
    (refused,) = [one for one in found.rules if not one.passed]
    assert refused.rule == rule
    assert re.search(reason, refused.reason), refused.reason


def test_uncertain_slice_does_not_refuse() -> None:
    assert verdict(replace(GOOD, tasks={"two": compared(slices=collapsed(0.01))})).passed
