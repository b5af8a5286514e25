"""Curves of a task's rows, as points and as charts.

Shape legend: N rows, C labels, P points, K bins.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics import NUM_BINS, equal_mass_bins
from pipeline.evaluation.svg_charts import Line, line_chart


def precision_recall(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall (P,) and precision (P,) at each distinct score, from the highest down.

    At least one row must be positive.
    """
    order = np.argsort(-score_N, kind="stable")
    ends_tie = np.append(np.diff(score_N[order]) != 0, True)
    hits_N = np.cumsum(positive_N[order])
    return hits_N[ends_tie] / hits_N[-1], (hits_N / np.arange(1, len(hits_N) + 1))[ends_tie]


def reliability(probability_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability (K,) and share of positives (K,) of the calibration error's non-empty bins."""
    bin_N = equal_mass_bins(probability_N)
    counts = np.bincount(bin_N, minlength=NUM_BINS)
    filled = counts > 0
    mean_probability, positive_share = (
        np.bincount(bin_N, weights=value, minlength=NUM_BINS)[filled] / counts[filled]
        for value in (probability_N, positive_N)
    )
    return mean_probability, positive_share


def confusion(label_N: np.ndarray, predicted_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Return row counts by true label and predicted label (C, C)."""
    cell_N = label_N * num_labels + predicted_N
    return np.bincount(cell_N, minlength=num_labels**2).reshape(num_labels, num_labels)


def most_confident_errors(probability_N: np.ndarray, positive_N: np.ndarray, count: int) -> np.ndarray:
    """Return the row numbers of at most `count` errors at a threshold of one half, most confident first."""
    wrong = np.flatnonzero((probability_N >= 0.5) != positive_N)
    order = np.argsort(-np.abs(probability_N[wrong] - 0.5), kind="stable")
    return wrong[order[:count]]


def curve_charts(systems: Sequence[tuple[str, np.ndarray]], positive_N: np.ndarray) -> dict[str, str]:
    """Draw precision over recall of both classes, and reliability.

    Args:
        systems: Name and probability (N,) of each system; a line of every chart.
        positive_N: Whether each row is relevant.

    Returns:
        SVG documents by name.
    """
    relevant = [Line(name, *precision_recall(probability_N, positive_N)) for name, probability_N in systems]
    defects = [Line(name, *precision_recall(-probability_N, ~positive_N)) for name, probability_N in systems]
    reliable = [Line(name, *reliability(probability_N, positive_N)) for name, probability_N in systems]
    return {
        "relevant rows": line_chart("relevant rows", "recall", "precision", relevant),
        "defects": line_chart("irrelevant rows (defects)", "recall", "precision", defects),
        "reliability": line_chart(
            "reliability", "mean probability", "share of relevant rows", reliable, diagonal=True
        ),
    }
