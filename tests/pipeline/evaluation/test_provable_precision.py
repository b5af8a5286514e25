"""Provable precision and the number of rows that a target needs."""

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.evaluation.calibration_fit import fit_thresholds
from pipeline.evaluation.provable_precision import DecisionEvidence, measure_evidence


def draw(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities and labels drawn from them."""
    random = np.random.default_rng(seed)
    probability_N = random.beta(0.6, 0.6, num_rows)
    return probability_N, random.random(num_rows) < probability_N


def measure(probability_N: np.ndarray, relevant_N: np.ndarray, target: float) -> DecisionEvidence:
    thresholds = fit_thresholds(probability_N, relevant_N, target)
    return measure_evidence(probability_N, relevant_N, target, thresholds)


def test_provable_precision_is_the_best_lower_bound() -> None:
    probability_N = np.array([0.9] * 20 + [0.1] * 10)
    relevant_N = np.array([True] * 19 + [False] * 11)
    evidence = measure(probability_N, relevant_N, 0.95)
    bound = binomtest(19, 20, alternative="greater").proportion_ci(0.9, method="exact").low
    assert evidence.relevant.provable_precision == pytest.approx(bound)
    assert not evidence.relevant.is_proven and evidence.target == 0.95


def test_proven_targets_need_no_rows() -> None:
    evidence = measure(*draw(4_000), 0.8)
    assert evidence.relevant.is_proven and evidence.relevant.rows_needed == 0
    assert evidence.relevant.provable_precision >= 0.8


def test_more_rows_of_the_same_kind_prove_the_target() -> None:
    probability_N, relevant_N = np.array([0.95] * 20 + [0.2] * 20), np.array([True] * 20 + [False] * 20)
    side = measure(probability_N, relevant_N, 0.93).relevant
    assert not side.is_proven and side.rows_needed is not None
    copies = -(-(len(probability_N) + side.rows_needed) // len(probability_N))
    again = measure(np.tile(probability_N, copies), np.tile(relevant_N, copies), 0.93)
    assert again.relevant.is_proven


def test_a_precision_below_the_target_has_no_number_of_rows() -> None:
    probability_N, relevant_N = np.full(400, 0.6), np.arange(400) % 5 < 3
    side = measure(probability_N, relevant_N, 0.9).relevant
    assert side.rows_needed is None and 0.5 < side.provable_precision < 0.6


def test_three_lucky_rows_prove_little() -> None:
    side = measure(np.array([0.9, 0.8, 0.7]), np.array([True] * 3), 0.9).relevant
    assert side.rows_needed is None and side.provable_precision < 0.5


def test_no_rows_prove_nothing() -> None:
    evidence = measure(np.zeros(0), np.zeros(0, dtype=bool), 0.9)
    assert evidence.relevant.provable_precision == 0.0 and evidence.irrelevant.rows_needed is None


def test_evidence_is_recorded_and_read_back() -> None:
    evidence = measure(*draw(200), 0.9)
    assert DecisionEvidence.from_json(evidence.to_json()) == evidence
