"""From logits to probabilities that mean what they say, and from those to decisions: plain numbers, which a
bundle carries.

Shape legend: N rows, C labels of the finest task.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.config.strict_model import Frozen
from pipeline.config.tasks import Task

Method = Literal["temperature", "platt", "isotonic"]


class Thresholds(Frozen):
    """Where decisions begin."""

    relevant_at: float | None = None  # decide relevant at or above this probability; None: never
    # decide irrelevant below this one; None: never. Between the two: abstain
    irrelevant_below: float | None = None


class Calibration(Thresholds):
    """One task's plain numbers."""

    temperature: float = Field(default=1.0, gt=0)  # divides the logits
    method: Method = "temperature"  # what is done to the probability of being relevant after that
    slope: float = 1.0  # platt: of the log odds
    intercept: float = 0.0  # platt: added to them
    # isotonic: probability before and after, rising; straight lines between
    curve: tuple[tuple[float, float], ...] = ()
    markets: dict[str, Thresholds] = {}  # thresholds of markets that have rows enough


def label_probabilities(logits_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of logits / temperature (N, C); labels with a logit of -inf get 0."""
    scaled = logits_NC / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def relevance_probability(label_probability_NC: np.ndarray, task: Task) -> np.ndarray:
    """The probability that the label counts as relevant (N,)."""
    return label_probability_NC[:, task.relevant_from :].sum(axis=1).clip(0.0, 1.0)


def expected_grade(label_probability_NC: np.ndarray) -> np.ndarray:
    """The mean label index (N,)."""
    return label_probability_NC @ np.arange(label_probability_NC.shape[1])


def calibrated_probabilities(logits_NC: np.ndarray, calibration: Calibration, task: Task) -> np.ndarray:
    """Label probabilities (N, C) that mean what they say: those of the temperature, moved so that the
    relevant labels together have the probability that the method gives; among relevant ones, and among
    irrelevant ones, their proportions stay.
    """
    probability_NC = label_probabilities(logits_NC, calibration.temperature)
    if calibration.method == "temperature" or not len(logits_NC):
        return probability_NC
    before_N = relevance_probability(probability_NC, task)
    after_N = moved(before_N, calibration)
    relevant_C = np.arange(probability_NC.shape[1]) >= task.relevant_from
    share_N2 = np.stack(
        [
            np.divide(1 - after_N, 1 - before_N, out=np.ones_like(after_N), where=before_N < 1),
            np.divide(after_N, before_N, out=np.ones_like(after_N), where=before_N > 0),
        ],
        axis=1,
    )
    scaled_NC = probability_NC * share_N2[:, relevant_C.astype(int)]
    return scaled_NC / scaled_NC.sum(axis=1, keepdims=True)


def moved(probability_N: np.ndarray, calibration: Calibration) -> np.ndarray:
    """What the method makes of the probability of being relevant (N,)."""
    if calibration.method == "platt":
        return 1 / (1 + np.exp(-(calibration.slope * log_odds(probability_N) + calibration.intercept)))
    before, after = np.asarray(calibration.curve).T
    return np.interp(probability_N, before, after)


def log_odds(probability_N: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), finite."""
    clipped_N = probability_N.clip(1e-12, 1 - 1e-12)
    return np.log(clipped_N) - np.log1p(-clipped_N)


def decide(
    probability_N: np.ndarray, calibration: Calibration, market_N: Sequence[str] | np.ndarray | None = None
) -> np.ndarray:
    """relevant, irrelevant or abstain for each row (N,), by the thresholds of its market where that has its
    own.
    """
    decision = np.full(len(probability_N), "abstain", dtype="<U10")
    markets = np.asarray(market_N if market_N is not None else [""] * len(probability_N), dtype=object)
    for market in set(markets.tolist()):
        thresholds, rows = calibration.markets.get(market, calibration), markets == market
        if thresholds.irrelevant_below is not None:
            decision[rows & (probability_N < thresholds.irrelevant_below)] = "irrelevant"
        if thresholds.relevant_at is not None:
            decision[rows & (probability_N >= thresholds.relevant_at)] = "relevant"
    return decision
