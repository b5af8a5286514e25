"""Precision of decisions that the valid split can prove, and the rows that a target would need.

Shape legend: N rows of the valid split.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.calibration_fit import CONFIDENCE, lower_bound
from pipeline.inference.calibration import Thresholds

MAX_ROWS = 10_000_000  # of the search for the number of rows


@dataclass(frozen=True)
class SideEvidence:
    """Evidence for one decision, relevant or irrelevant."""

    is_proven: bool  # there is a threshold at which the target holds
    provable_precision: float  # highest lower bound of any threshold
    rows_needed: int | None  # further valid rows; 0 if proven, None if no threshold exceeds the target


@dataclass(frozen=True)
class DecisionEvidence:
    """Evidence for the decisions of a task."""

    target: float
    relevant: SideEvidence
    irrelevant: SideEvidence

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "DecisionEvidence":
        """Parse the recorded form."""
        sides = {name: SideEvidence(**fields[name]) for name in ("relevant", "irrelevant")}
        return cls(fields["target"], **sides)

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return asdict(self)


def measure_evidence(
    probability_N: np.ndarray, relevant_N: np.ndarray, target: float, thresholds: Thresholds
) -> DecisionEvidence:
    """Measure the evidence for both decisions on valid rows.

    Args:
        probability_N: Calibrated probability of relevance.
        relevant_N: Mask of the rows whose human label counts as relevant.
        target: The task's target precision.
        thresholds: Thresholds fitted on the same rows.
    """
    return DecisionEvidence(
        target,
        _measure_side(probability_N, relevant_N, target, thresholds.relevant_at is not None),
        _measure_side(-probability_N, ~relevant_N, target, thresholds.irrelevant_below is not None),
    )


def _measure_side(
    score_N: np.ndarray, positive_N: np.ndarray, target: float, is_proven: bool
) -> SideEvidence:
    if len(score_N) == 0:
        return SideEvidence(is_proven, 0.0, None)
    order = np.argsort(-score_N, kind="stable")
    score, hits = score_N[order], np.cumsum(positive_N[order])
    counts = np.arange(1, len(score) + 1)
    is_threshold = np.append(score[1:] != score[:-1], True)  # a threshold cannot separate equal scores
    hits, counts = hits[is_threshold], counts[is_threshold]
    provable = float(lower_bound(hits, counts, CONFIDENCE).max())
    if is_proven:
        return SideEvidence(True, provable, 0)
    # Laplace's estimate of the precision: a share of 1 among three rows is no evidence for 1
    precision = (hits + 1) / (counts + 2)
    promising = np.flatnonzero(precision > target)
    if not len(promising):
        return SideEvidence(False, provable, None)
    needed = _rows_for_target(precision[promising], target) * len(score) / counts[promising]
    if needed.min() >= MAX_ROWS:
        return SideEvidence(False, provable, None)
    num_further = float(needed.min()) - len(score)
    return SideEvidence(False, provable, max(1, math.ceil(num_further)))


def _rows_for_target(precision: np.ndarray, target: float) -> np.ndarray:
    """Return the least number of rows, for each precision, at which its lower bound reaches the target."""
    low, high = np.ones(len(precision)), np.full(len(precision), float(MAX_ROWS))
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        is_reached = lower_bound(precision * middle, middle, CONFIDENCE) >= target
        low, high = np.where(is_reached, low, middle), np.where(is_reached, middle, high)
    return high
