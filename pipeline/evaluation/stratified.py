"""Interval of a proportion from a stratified sample without replacement.

Shape legend: H strata.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

PRIOR_ROWS = 1.0  # rows of the overall proportion that each stratum's variance is mixed with


@dataclass(frozen=True)
class Stratum:
    """Rows of a stratum, those drawn at random from it, and how many of these have the property."""

    rows: int
    drawn: int
    hits: int


@dataclass(frozen=True)
class Proportion:
    """Estimated share of rows, with an interval."""

    value: float
    low: float
    high: float
    drawn: int


def estimate_proportion(strata: Sequence[Stratum], confidence: float = 0.95) -> Proportion:
    """Estimate the share of all rows that have a property.

    The value is the stratified (Horvitz-Thompson) estimate, p = sum(W_h x_h / n_h) with W_h = N_h / N. Its
    variance is V = sum(W_h^2 (1 - n_h / N_h) p_h (1 - p_h) / n_h), with the finite population correction
    (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 5). In strata of few drawn rows the own share is
    often 0 or 1, and its variance 0; so p_h = (x_h + p') / (n_h + 1), with p' = (n p + 1) / (n + 2).

    The interval is Wilson's with the effective sample size n* = q (1 - q) / V, q = sum(W_h p_h), in place of
    n, as Korn and Graubard (Survey Methodology 24, 1998) do for shares near 0 and 1. If all rows were drawn
    it has no width.

    Args:
        strata: Each with at least one drawn row.
        confidence: Of the interval.
    """
    rows_H, drawn_H, hits_H = np.array([(s.rows, s.drawn, s.hits) for s in strata], float).T
    weight_H, drawn = rows_H / rows_H.sum(), int(drawn_H.sum())
    value = float(weight_H @ (hits_H / drawn_H))
    prior = (drawn * value + 1) / (drawn + 2)
    share_H = (hits_H + PRIOR_ROWS * prior) / (drawn_H + PRIOR_ROWS)
    variance = float(weight_H**2 @ ((1 - drawn_H / rows_H) * share_H * (1 - share_H) / drawn_H))
    if variance == 0:
        return Proportion(value, value, value, drawn)
    share = float(weight_H @ share_H)
    effective, z = share * (1 - share) / variance, float(norm.ppf((1 + confidence) / 2))
    scale = 1 + z**2 / effective
    center = (value + z**2 / (2 * effective)) / scale
    half = z / scale * math.sqrt(value * (1 - value) / effective + (z / (2 * effective)) ** 2)
    return Proportion(value, min(value, max(0.0, center - half)), max(value, min(1.0, center + half)), drawn)
