"""Fit of a calibration on the valid split: method by cross-validation, thresholds by a bound on precision.

Shape legend: N rows, C labels of the task.
"""

from collections.abc import Sequence

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

NUM_FOLDS = 5  # in the cross-validation that chooses the method

MIN_ISOTONIC_ROWS = 200  # valid rows

MIN_MARKET_ROWS = 200  # valid rows of a market with thresholds of its own

CONFIDENCE = 0.9  # that the precision beyond a threshold is at least the target

MIN_GAIN = 1e-3  # in log loss, of a method over the temperature alone


def fit_calibration(
    logits_NC: np.ndarray, label_N: np.ndarray, task: Task, query_N: np.ndarray, market_N: np.ndarray
) -> Calibration:
    """Fit a temperature (Guo et al. 2017, section 4.2), Platt scaling or an isotonic curve, and thresholds.

    The method with the lowest log loss over folds of queries is chosen. Thresholds are for the task's target
    precision. Without rows the result is the identity without decisions.
    """
    if len(label_N) == 0:
        return Calibration()
    calibration = fit_method(choose_method(logits_NC, label_N, task, query_N), logits_NC, label_N, task)
    probability_N = relevance_probability(calibrated_probabilities(logits_NC, calibration, task), task)
    relevant_N = label_N >= task.relevant_from
    markets = {}
    for market in sorted(set(market_N.tolist())):
        rows = market_N == market
        if MIN_MARKET_ROWS <= rows.sum() < len(rows):
            markets[market] = fit_thresholds(probability_N[rows], relevant_N[rows], task.target_precision)
    overall = fit_thresholds(probability_N, relevant_N, task.target_precision)
    return calibration.model_copy(update={**overall.model_dump(), "markets": markets})


def choose_method(logits_NC: np.ndarray, label_N: np.ndarray, task: Task, query_N: np.ndarray) -> Method:
    """Return the method of lowest log loss of relevance on rows of held-out queries.

    Temperature alone is chosen unless another method is better by MIN_GAIN.
    """
    methods: list[Method] = ["temperature", "platt"]
    if len(label_N) >= MIN_ISOTONIC_ROWS:
        methods.append("isotonic")
    _, query_index_N = np.unique(query_N, return_inverse=True)
    fold_N = np.random.default_rng(0).permutation(int(query_index_N.max()) + 1)[query_index_N] % NUM_FOLDS
    relevant_N = label_N >= task.relevant_from
    losses = {}
    for method in methods:
        held_out_N = np.full(len(label_N), np.nan)
        for fold in set(fold_N.tolist()):
            is_held_out = fold_N == fold
            if is_held_out.all():
                return "temperature"  # a single query cannot be held out
            calibration = fit_method(method, logits_NC[~is_held_out], label_N[~is_held_out], task)
            held_out_N[is_held_out] = relevance_probability(
                calibrated_probabilities(logits_NC[is_held_out], calibration, task), task
            )
        losses[method] = binary_log_loss(held_out_N, relevant_N)
    best = min(losses, key=lambda method: losses[method])
    return best if losses[best] < losses["temperature"] - MIN_GAIN else "temperature"


def fit_method(method: Method, logits_NC: np.ndarray, label_N: np.ndarray, task: Task) -> Calibration:
    """Fit the parameters of one method, without thresholds."""
    temperature = fit_temperature(logits_NC, label_N)
    temperature_only = Calibration(temperature=temperature)
    relevant_N = label_N >= task.relevant_from
    if method == "temperature" or relevant_N.all() or not relevant_N.any():
        return temperature_only
    before_N = relevance_probability(label_probabilities(logits_NC, temperature), task)
    if method == "isotonic":
        curve = fit_isotonic(before_N, relevant_N)
        return temperature_only.model_copy(update={"method": "isotonic", "curve": curve})
    slope, intercept = fit_platt(before_N, relevant_N)
    if slope <= 0:  # would reverse the ranking
        return temperature_only
    return temperature_only.model_copy(update={"method": "platt", "slope": slope, "intercept": intercept})


def fit_temperature(logits_NC: np.ndarray, label_N: np.ndarray) -> float:
    """Return the temperature of lowest mean log loss of the labels, between 0.05 and 20."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(label_N))

    def mean_log_loss(log_temperature: float) -> float:
        scaled = logits_NC / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, label_N]))

    bounds = (np.log(0.05), np.log(20.0))
    minimum = minimize_scalar(mean_log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(float(minimum.x)))


def fit_platt(probability_N: np.ndarray, relevant_N: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept of the log odds, fitted to smoothed targets (Platt 1999, section 2.2)."""
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
    """Return a non-decreasing curve of (probability before, after), at least 1 / 2N away from 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    edge = 1 / (2 * len(probability_N))
    curve = IsotonicRegression(y_min=edge, y_max=1 - edge).fit(probability_N, relevant_N)
    return tuple(
        (float(before), float(after))
        for before, after in zip(curve.X_thresholds_, curve.y_thresholds_, strict=True)
    )


def binary_log_loss(probability_N: np.ndarray, relevant_N: np.ndarray) -> float:
    """Return the mean log loss."""
    clipped_N = probability_N.clip(1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(relevant_N, np.log(clipped_N), np.log1p(-clipped_N))))


def fit_thresholds(probability_N: np.ndarray, relevant_N: np.ndarray, target: float) -> Thresholds:
    """Return thresholds beyond which decisions have the target precision."""
    relevant_at = precision_threshold(probability_N, relevant_N, target)
    # The two thresholds must not overlap: the second one is fitted on the rows below the first.
    is_below_N = probability_N < (np.inf if relevant_at is None else relevant_at)
    below = precision_threshold(-probability_N[is_below_N], ~relevant_N[is_below_N], target)
    return Thresholds(
        relevant_at=relevant_at,
        irrelevant_below=None if below is None else float(np.nextafter(-below, np.inf)),
    )


def precision_threshold(
    score_N: np.ndarray, positive_N: np.ndarray, target: float, confidence: float = CONFIDENCE
) -> float | None:
    """Return the lowest score from which on the share of positives reaches `target`; None without one.

    The share is the lower bound of Clopper and Pearson with `confidence`, for one threshold. Taking the best
    of many thresholds makes it a little optimistic.
    """
    order = np.argsort(-score_N, kind="stable")
    score, hits = score_N[order], np.cumsum(positive_N[order])
    counts = np.arange(1, len(score) + 1)
    # A threshold cannot separate equal scores.
    ends_tie = np.append(score[1:] != score[:-1], True)[: len(score)]
    good = np.flatnonzero(ends_tie & (lower_bound(hits, counts, confidence) >= target))
    return float(score[good[-1]]) if len(good) else None


def lower_bound(
    hits: np.ndarray | Sequence[int], counts: np.ndarray | Sequence[int], confidence: float
) -> np.ndarray:
    """Return the one-sided lower bound of a binomial share (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    hits, counts = np.asarray(hits), np.asarray(counts)
    return np.where(hits > 0, beta.ppf(1 - confidence, np.maximum(hits, 1), counts - hits + 1), 0.0)
