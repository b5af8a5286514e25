"""Calibration fitted on the valid split, and on nothing else: method by cross-validation, thresholds by a
bound on their precision.

Shape legend: N rows, C labels of the task.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.config.tasks import Task
from pipeline.inference.calibration import (
    Calibration,
    Method,
    Thresholds,
    calibrated_probabilities,
    label_probabilities,
    log_odds,
    relevance_probability,
)

FOLDS = 5  # of the cross-validation that chooses the method

ISOTONIC_ROWS = 200  # valid rows from which on a free curve is tried

MARKET_ROWS = 200  # valid rows of a market from which on it gets thresholds of its own

CONFIDENCE = 0.9  # that the precision beyond a threshold is no lower than the target

GAIN = 1e-3  # of log loss that a method with more numbers must bring


def fit_calibration(
    logits_NC: np.ndarray, label_N: np.ndarray, task: Task, query_N: np.ndarray, market_N: np.ndarray
) -> Calibration:
    """A temperature (Guo et al. 2017, section 4.2), Platt's line or an isotonic curve, whichever has the
    least log loss over folds of queries; thresholds for the task's target precision. No rows: the identity,
    no decisions.
    """
    if len(label_N) == 0:
        return Calibration()
    calibration = fit_method(choose_method(logits_NC, label_N, task, query_N), logits_NC, label_N, task)
    probability_N = relevance_probability(calibrated_probabilities(logits_NC, calibration, task), task)
    relevant_N = label_N >= task.relevant_from
    markets = {}
    for market in sorted(set(market_N.tolist())):
        rows = market_N == market
        if MARKET_ROWS <= rows.sum() < len(rows):
            markets[market] = fit_thresholds(probability_N[rows], relevant_N[rows], task.target_precision)
    overall = fit_thresholds(probability_N, relevant_N, task.target_precision)
    return calibration.model_copy(update={**overall.model_dump(), "markets": markets})


def choose_method(logits_NC: np.ndarray, label_N: np.ndarray, task: Task, query_N: np.ndarray) -> Method:
    """The method of least mean log loss of relevance on rows whose queries it was not fitted on. Temperature,
    unless another is clearly better.
    """
    methods: list[Method] = (
        ["temperature", "platt", "isotonic"] if len(label_N) >= ISOTONIC_ROWS else ["temperature", "platt"]
    )
    _, query_index_N = np.unique(query_N, return_inverse=True)
    fold_N = np.random.default_rng(0).permutation(int(query_index_N.max()) + 1)[query_index_N] % FOLDS
    relevant_N = label_N >= task.relevant_from
    losses = {}
    for method in methods:
        said_N = np.full(len(label_N), np.nan)
        for fold in set(fold_N.tolist()):
            held = fold_N == fold
            if held.all():
                return "temperature"  # one query: nothing to hold out
            fitted = fit_method(method, logits_NC[~held], label_N[~held], task)
            said_N[held] = relevance_probability(
                calibrated_probabilities(logits_NC[held], fitted, task), task
            )
        losses[method] = binary_log_loss(said_N, relevant_N)
    best = min(losses, key=lambda method: losses[method])
    return best if losses[best] < losses["temperature"] - GAIN else "temperature"


def fit_method(method: Method, logits_NC: np.ndarray, label_N: np.ndarray, task: Task) -> Calibration:
    """The numbers of one method, without thresholds."""
    temperature = fit_temperature(logits_NC, label_N)
    plain = Calibration(temperature=temperature)
    relevant_N = label_N >= task.relevant_from
    if method == "temperature" or relevant_N.all() or not relevant_N.any():
        return plain
    before_N = relevance_probability(label_probabilities(logits_NC, temperature), task)
    if method == "platt":
        slope, intercept = fit_platt(before_N, relevant_N)
        return (
            plain.model_copy(update={"method": "platt", "slope": slope, "intercept": intercept})
            if slope > 0
            else plain
        )
    return plain.model_copy(update={"method": "isotonic", "curve": fit_isotonic(before_N, relevant_N)})


def fit_temperature(logits_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The temperature of least mean log loss over the labels, between 0.05 and 20."""
    rows = np.arange(len(label_N))

    def mean_log_loss(log_temperature: float) -> float:
        scaled = logits_NC / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, label_N]))

    return float(np.exp(minimum(mean_log_loss, (np.log(0.05), np.log(20.0)))))


def minimum(function: Callable[[float], float], bounds: tuple[float, float]) -> float:
    """Where a function of one number is least."""
    from scipy.optimize import minimize_scalar

    return float(minimize_scalar(function, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def fit_platt(probability_N: np.ndarray, relevant_N: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of the log odds, to targets drawn in a little from 0 and 1 (Platt 1999, section
    2.2).
    """
    from scipy.optimize import minimize

    odds_N, num_relevant = log_odds(probability_N).clip(-30, 30), int(relevant_N.sum())
    target_N = np.where(
        relevant_N, (num_relevant + 1) / (num_relevant + 2), 1 / (len(relevant_N) - num_relevant + 2)
    )

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z_N = line[0] * odds_N + line[1]
        gap_N = 1 / (1 + np.exp(-z_N)) - target_N
        return float(np.mean(np.logaddexp(0, z_N) - target_N * z_N)), np.array(
            [np.mean(gap_N * odds_N), np.mean(gap_N)]
        )

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(slope), float(intercept)


def fit_isotonic(probability_N: np.ndarray, relevant_N: np.ndarray) -> tuple[tuple[float, float], ...]:
    """A rising curve through the shares of relevant rows, kept off 0 and 1 by what so many rows can tell."""
    from sklearn.isotonic import IsotonicRegression

    edge = 1 / (2 * len(probability_N))
    curve = IsotonicRegression(y_min=edge, y_max=1 - edge).fit(probability_N, relevant_N)
    return tuple(
        (float(before), float(after))
        for before, after in zip(curve.X_thresholds_, curve.y_thresholds_, strict=True)
    )


def binary_log_loss(probability_N: np.ndarray, relevant_N: np.ndarray) -> float:
    """Mean log loss."""
    clipped_N = probability_N.clip(1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(relevant_N, np.log(clipped_N), np.log1p(-clipped_N))))


def fit_thresholds(probability_N: np.ndarray, relevant_N: np.ndarray, target: float) -> Thresholds:
    """Thresholds beyond which decisions are right as often as `target`, as far as these rows can tell."""
    relevant_at = precision_threshold(probability_N, relevant_N, target)
    # only among the rows not decided relevant: the precision below a threshold moved down afterwards could be
    # any
    left_N = probability_N < (np.inf if relevant_at is None else relevant_at)
    below = precision_threshold(-probability_N[left_N], ~relevant_N[left_N], target)
    return Thresholds(
        relevant_at=relevant_at,
        irrelevant_below=None if below is None else float(np.nextafter(-below, np.inf)),
    )


def precision_threshold(
    score_N: np.ndarray, positive_N: np.ndarray, target: float, confidence: float = CONFIDENCE
) -> float | None:
    """The lowest score from which up the share of positives is at least `target` with `confidence` (Clopper
    and Pearson's lower bound for that one threshold; that the best of many is taken makes it a little
    optimistic). None if no score is.
    """
    order = np.argsort(-score_N, kind="stable")
    score, hits = score_N[order], np.cumsum(positive_N[order])
    counts = np.arange(1, len(score) + 1)
    # a threshold cannot separate equal scores
    ends_tie = np.append(score[1:] != score[:-1], True)[: len(score)]
    good = np.flatnonzero(ends_tie & (lower_bound(hits, counts, confidence) >= target))
    return float(score[good[-1]]) if len(good) else None


def lower_bound(
    hits: np.ndarray | Sequence[int], counts: np.ndarray | Sequence[int], confidence: float
) -> np.ndarray:
    """The share that so many hits of so many rows leave no lower, with `confidence` (Clopper and Pearson
    1934).
    """
    from scipy.stats import beta

    hits, counts = np.asarray(hits), np.asarray(counts)
    return np.where(hits > 0, beta.ppf(1 - confidence, np.maximum(hits, 1), counts - hits + 1), 0.0)
