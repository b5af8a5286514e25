"""Figures of one task's scores, and their uncertainty when queries are drawn again.

Shape legend: N rows, Q queries, D bootstrap draws, G groups of equal scores.
"""

from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 1_000  # bootstrap draws behind an interval
NUM_BINS = 10  # equal-mass bins of the calibration error


@dataclass(frozen=True)
class Interval:
    """A figure and the middle 95 % of its bootstrap draws."""

    value: float
    low: float
    high: float


def average_precisions(score_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray) -> np.ndarray:
    """PR-AUC (average precision, as scikit-learn's) under each row of weights (D,); NaN where a draw holds no positive."""
    hits_DG, misses_DG = cumulative_by_score(score_N, positive_N, weight_DN)
    new_hits_DG = np.diff(hits_DG, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_DG = np.where(hits_DG + misses_DG > 0, hits_DG / (hits_DG + misses_DG), 0.0)
        return (precision_DG * new_hits_DG).sum(axis=1) / hits_DG[:, -1]


def roc_aucs(score_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray) -> np.ndarray:
    """ROC AUC under each row of weights (D,), ties counted half; NaN where a draw lacks a class."""
    hits_DG, misses_DG = cumulative_by_score(score_N, positive_N, weight_DN)
    new_misses_DG = np.diff(misses_DG, axis=1, prepend=0.0)
    mean_hits_DG = hits_DG - np.diff(hits_DG, axis=1, prepend=0.0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (new_misses_DG * mean_hits_DG).sum(axis=1) / (hits_DG[:, -1] * misses_DG[:, -1])


def cumulative_by_score(score_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at or above each distinct score, from the highest down: two (D, G)."""
    order = np.argsort(-score_N, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))
    weight_DN = weight_DN[:, order]
    positive_N = positive_N[order].astype(np.float64)
    hits_DN = np.cumsum(weight_DN * positive_N, axis=1)
    return hits_DN[:, last_of_tie], (np.cumsum(weight_DN, axis=1) - hits_DN)[:, last_of_tie]


def query_draws(query_N: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """Weights (D, N) of drawing whole queries with replacement: rows of one query rise and fall together."""
    _, query_index_N = np.unique(query_N, return_inverse=True)
    num_queries = int(query_index_N.max()) + 1
    random = np.random.default_rng(seed)
    counts_DQ = random.multinomial(num_queries, np.full(num_queries, 1 / num_queries), size=num_draws)
    return counts_DQ[:, query_index_N].astype(np.float64)


def interval(value: float, draw_D: np.ndarray) -> Interval:
    """The middle 95 % of the draws; draws that have no value are left out."""
    low, high = np.nanquantile(draw_D, [0.025, 0.975]) if np.isfinite(draw_D).any() else (float("nan"), float("nan"))
    return Interval(float(value), float(low), float(high))


def calibration_error(probability_N: np.ndarray, positive_N: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error over equal-mass bins: mean distance between the probability said and the share that came true."""
    # rows of equal probability count with their common share, or the figure would follow the order of the rows
    _, group_N, count_G = np.unique(probability_N, return_inverse=True, return_counts=True)
    share_N = (np.bincount(group_N, positive_N) / count_G)[group_N]
    bins = np.array_split(np.argsort(probability_N, kind="stable"), min(num_bins, len(probability_N)))
    return float(sum(abs(probability_N[b].mean() - share_N[b].mean()) * len(b) for b in bins) / len(probability_N))


def f1_score(decided_N: np.ndarray, positive_N: np.ndarray) -> float:
    """F1 of the positive class; 0 where nothing is decided or true."""
    both = float((decided_N & positive_N).sum())
    return 2 * both / max(float(decided_N.sum() + positive_N.sum()), 1.0)


def task_figures(probability_N: np.ndarray, positive_N: np.ndarray) -> dict[str, float]:
    """The figures of one task that one sees side by side: roc_auc, pr_auc, f1 at one half, calibration_error, brier, log_loss."""
    ones = np.ones((1, len(probability_N)))
    clipped = probability_N.clip(1e-7, 1 - 1e-7)
    return {
        "roc_auc": float(roc_aucs(probability_N, positive_N, ones)[0]),
        "pr_auc": float(average_precisions(probability_N, positive_N, ones)[0]),
        "f1": f1_score(probability_N >= 0.5, positive_N),
        "calibration_error": calibration_error(probability_N, positive_N),
        "brier": float(np.mean((probability_N - positive_N) ** 2)),
        "log_loss": float(-np.mean(np.where(positive_N, np.log(clipped), np.log1p(-clipped)))),
    }
