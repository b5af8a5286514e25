"""What a report draws of a task's rows.

Shape legend: N rows, C labels, P points, K bins.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics import NUM_BINS, equal_mass_bins
from pipeline.evaluation.svg_charts import Line, line_chart


def precision_recall(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(recall (P,), precision (P,)), one point for each score at which a threshold can stand, from the
    highest down. There are positives.
    """
    order = np.argsort(-score_N, kind="stable")
    ends_tie = np.append(np.diff(score_N[order]) != 0, True)
    hits_N = np.cumsum(positive_N[order])
    return hits_N[ends_tie] / hits_N[-1], (hits_N / np.arange(1, len(hits_N) + 1))[ends_tie]


def reliability(probability_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean probability (K,), share of positives (K,)) of the bins of the calibration error that hold
    rows.
    """
    bin_N = equal_mass_bins(probability_N)
    counts = np.bincount(bin_N, minlength=NUM_BINS)
    filled = counts > 0
    said, seen = (
        np.bincount(bin_N, weights=value, minlength=NUM_BINS)[filled] / counts[filled]
        for value in (probability_N, positive_N)
    )
    return said, seen


def confusion(label_N: np.ndarray, said_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Rows by true and by said label (C, C)."""
    return np.bincount(label_N * num_labels + said_N, minlength=num_labels**2).reshape(num_labels, num_labels)


def surest_errors(probability_N: np.ndarray, positive_N: np.ndarray, count: int) -> np.ndarray:
    """Positions of the rows on whose wrong side of one half the probability lies, the surest first, at most
    so many.
    """
    wrong = np.flatnonzero((probability_N >= 0.5) != positive_N)
    order = np.argsort(-np.abs(probability_N[wrong] - 0.5), kind="stable")
    return wrong[order[:count]]


def curve_charts(sides: Sequence[tuple[str, np.ndarray]], positive_N: np.ndarray) -> dict[str, str]:
    """SVG by name: precision over recall of the relevant rows and of the others, and reliability, a line for
    each (name, probability (N,)).
    """
    relevant: list[Line] = [
        (name, *precision_recall(probability_N, positive_N)) for name, probability_N in sides
    ]
    defects: list[Line] = [
        (name, *precision_recall(-probability_N, ~positive_N)) for name, probability_N in sides
    ]
    reliable: list[Line] = [(name, *reliability(probability_N, positive_N)) for name, probability_N in sides]
    return {
        "relevant rows": line_chart("relevant rows", "recall", "precision", relevant),
        "defects": line_chart("irrelevant rows (defects)", "recall", "precision", defects),
        "reliability": line_chart(
            "reliability", "mean probability", "share of relevant rows", reliable, diagonal=True
        ),
    }
