"""From logits to probabilities that mean what they say, and from those to decisions. Fitted on the valid split, nothing else.

Shape legend: N rows, C labels of the finest task.
"""

import numpy as np
from pydantic import Field

from pipeline.frozen import Frozen
from pipeline.tasks import Task

MIN_DECIDED_ROWS = 10  # a threshold that fewer valid rows support is chance


class Calibration(Frozen):
    """One task's plain numbers."""

    temperature: float = Field(default=1.0, gt=0)  # divides the logits
    relevant_at: float | None = None  # decide relevant at or above this probability; None: never
    irrelevant_below: float | None = None  # decide irrelevant below this one; None: never. Between the two: abstain


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


def decide(probability_N: np.ndarray, calibration: Calibration) -> np.ndarray:
    """relevant, irrelevant or abstain for each row (N,)."""
    decision = np.full(len(probability_N), "abstain", dtype="<U10")
    if calibration.irrelevant_below is not None:
        decision[probability_N < calibration.irrelevant_below] = "irrelevant"
    if calibration.relevant_at is not None:
        decision[probability_N >= calibration.relevant_at] = "relevant"
    return decision


def fit_calibration(logits_NC: np.ndarray, label_N: np.ndarray, task: Task) -> Calibration:
    """Temperature by log loss over the labels, then thresholds for the task's target precision. No rows: the identity, no decisions."""
    if len(label_N) == 0:
        return Calibration()
    temperature = fit_temperature(logits_NC, label_N)
    probability_N = relevance_probability(label_probabilities(logits_NC, temperature), task)
    relevant_N = label_N >= task.relevant_from
    relevant_at = precision_threshold(probability_N, relevant_N, task.target_precision)
    # only among the rows not decided relevant: the precision below a threshold moved down afterwards could be any
    left_N = probability_N < (np.inf if relevant_at is None else relevant_at)
    below = precision_threshold(-probability_N[left_N], ~relevant_N[left_N], task.target_precision)
    irrelevant_below = None if below is None else float(np.nextafter(-below, np.inf))
    return Calibration(temperature=temperature, relevant_at=relevant_at, irrelevant_below=irrelevant_below)


def fit_temperature(logits_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The temperature of least mean log loss, between 0.05 and 20 (Guo et al. 2017, section 4.2)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(label_N))

    def mean_log_loss(log_temperature: float) -> float:
        scaled = logits_NC / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, label_N]))

    found = minimize_scalar(mean_log_loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def precision_threshold(score_N: np.ndarray, positive_N: np.ndarray, target: float) -> float | None:
    """The lowest score from which up at least `target` of the rows are positive; None if no score reaches it on enough rows."""
    order = np.argsort(-score_N, kind="stable")
    score, hits = score_N[order], np.cumsum(positive_N[order])
    counts = np.arange(1, len(score) + 1)
    ends_tie = np.append(score[1:] != score[:-1], True)  # a threshold cannot separate equal scores
    good = np.flatnonzero(ends_tie & (hits / counts >= target) & (counts >= MIN_DECIDED_ROWS))
    return float(score[good[-1]]) if len(good) else None
