"""Calibrated probabilities from logits, and decisions from probabilities.

Shape legend: N rows, C labels of the task.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.config.scoring import WhenUnproven
from pipeline.config.strict_model import StrictModel
from pipeline.config.tasks import Task

Method = Literal["temperature", "platt", "isotonic"]


Probability = Annotated[float, Field(ge=0, le=1)]

# between probabilities of a curve: a smaller step has no slope, or an infinite one; scikit-learn merges 1e-15
MIN_CURVE_STEP = 1e-16

BEYOND_ONE = math.nextafter(1.0, 2.0)  # threshold below which all probabilities lie


class Thresholds(StrictModel):
    """Probabilities at which decisions begin; between the two the decision is to abstain."""

    relevant_at: Probability | None = None  # relevant at or above; None: never
    irrelevant_below: float | None = Field(default=None, ge=0, le=BEYOND_ONE)  # irrelevant below; None: never

    @model_validator(mode="after")
    def _check_order(self) -> "Thresholds":
        relevant_at, below = self.relevant_at, self.irrelevant_below
        if relevant_at is not None and below is not None and relevant_at < below:
            raise ValueError(f"irrelevant_below {below} must not exceed relevant_at {relevant_at}")
        return self


class Calibration(Thresholds):
    """Calibration of one task."""

    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)  # divides the logits, which stay finite
    method: Method = "temperature"  # recalibrates the probability of relevance
    slope: float = Field(default=1.0, gt=0)  # platt: factor of the log odds
    intercept: float = 0.0  # platt: added to the log odds
    # isotonic: (probability before, after), increasing before, non-decreasing after, interpolated linearly
    curve: tuple[tuple[Probability, Probability], ...] = ()
    markets: dict[str, Thresholds] = {}  # own thresholds of markets with enough rows

    @model_validator(mode="after")
    def _check_curve(self) -> "Calibration":
        befores, afters = (list(side) for side in zip(*self.curve, strict=True)) if self.curve else ([], [])
        if befores != sorted(befores) or afters != sorted(afters):
            raise ValueError("curve must not decrease")
        if any(after - before < MIN_CURVE_STEP for before, after in itertools.pairwise(befores)):
            raise ValueError(f"curve must step by {MIN_CURVE_STEP:g} or more in the probability before")
        if self.method == "isotonic" and not self.curve:
            raise ValueError("curve of the isotonic method is missing")
        return self


def label_probabilities(logits_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature) (N, C); a logit of -inf gives 0."""
    scaled = logits_NC / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def relevance_probability(label_probability_NC: np.ndarray, task: Task) -> np.ndarray:
    """Return the probability that the label counts as relevant (N,)."""
    return label_probability_NC[:, task.relevant_from :].sum(axis=1).clip(0.0, 1.0)


def expected_grade(label_probability_NC: np.ndarray) -> np.ndarray:
    """Return the mean label index (N,)."""
    return label_probability_NC @ np.arange(label_probability_NC.shape[1])


def calibrated_probabilities(logits_NC: np.ndarray, calibration: Calibration, task: Task) -> np.ndarray:
    """Return calibrated label probabilities (N, C).

    The method recalibrates the probability of relevance. Proportions among the relevant labels, and among the
    irrelevant ones, stay those of the softmax.
    """
    probability_NC = label_probabilities(logits_NC, calibration.temperature)
    if calibration.method == "temperature" or not len(logits_NC):
        return probability_NC
    after_N = recalibrate(relevance_probability(probability_NC, task), calibration)
    # softmax of each side alone: a side's probability may round to 0, and its proportions are needed then too
    irrelevant_NC, relevant_NC = (
        label_probabilities(side_NC, calibration.temperature)
        for side_NC in np.split(logits_NC, [task.relevant_from], axis=1)
    )
    return np.concatenate([(1 - after_N)[:, None] * irrelevant_NC, after_N[:, None] * relevant_NC], axis=1)


def recalibrate(probability_N: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return the probability of relevance after Platt scaling or the isotonic curve (N,)."""
    if calibration.method == "platt":
        return 1 / (1 + np.exp(-(calibration.slope * log_odds(probability_N) + calibration.intercept)))
    before, after = np.asarray(calibration.curve).T
    return np.interp(probability_N, before, after)


def log_odds(probability_N: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), clipped to finite values."""
    clipped_N = probability_N.clip(1e-12, 1 - 1e-12)
    return np.log(clipped_N) - np.log1p(-clipped_N)


@dataclass(frozen=True)
class Decisions:
    """Decisions of N rows, and the basis of each."""

    decision_N: np.ndarray  # relevant, irrelevant, abstain
    basis_N: np.ndarray  # target_precision, best_guess, unproven


def decide(
    probability_N: np.ndarray,
    calibration: Calibration,
    market_N: Sequence[str] | np.ndarray | None = None,
    when_unproven: WhenUnproven = "abstain",
) -> Decisions:
    """Decide by the thresholds of each row's market, or of the task if the market has none.

    A threshold that is None is unproven: the valid split could not show the target precision on that side.
    Rows on that side of probability 0.5 then abstain; with `best_guess` they get the more probable decision.
    """
    decision_N = np.full(len(probability_N), "abstain", dtype="<U10")
    basis_N = np.full(len(probability_N), "target_precision", dtype="<U16")
    markets = np.asarray(market_N if market_N is not None else [""] * len(probability_N), dtype=object)
    for market in set(markets.tolist()):
        thresholds = calibration.markets.get(market, calibration)
        in_market_N = markets == market
        above_half_N, below_half_N = probability_N >= 0.5, probability_N < 0.5
        sides = (
            ("irrelevant", thresholds.irrelevant_below, np.less, below_half_N),
            ("relevant", thresholds.relevant_at, np.greater_equal, above_half_N),
        )
        for decision, threshold, is_beyond, _ in sides:
            if threshold is not None:
                decision_N[in_market_N & is_beyond(probability_N, threshold)] = decision
        for decision, threshold, _, half_N in sides:
            unproven_N = in_market_N & half_N & (decision_N == "abstain")
            if threshold is None and when_unproven == "best_guess":
                decision_N[unproven_N] = decision
            if threshold is None:
                basis_N[unproven_N] = "best_guess" if when_unproven == "best_guess" else "unproven"
    return Decisions(decision_N, basis_N)
