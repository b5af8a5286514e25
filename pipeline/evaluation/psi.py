"""Population stability index and KL divergence of two distributions over the same categories.

For smoothed shares p of the reference and q of the current counts over B categories:

    PSI = sum (q - p) ln(q / p)        KL = sum q ln(q / p), in nats

PSI is the symmetric sum of two KL divergences (S. Kullback and R. A. Leibler, Ann. Math. Stat. 22, 1951). The
credit industry warns from 0.1 and reports drift from 0.25, whatever the number of rows (N. Siddiqi, Credit
Risk Scorecards, 2006). By chance alone PSI is about chi-square with B - 1 degrees of freedom times
1 / n + 1 / m (B. Yurdakul, Statistical Properties of Population Stability Index, 2018).

Shape legend: B categories.
"""

from collections.abc import Sequence

import numpy as np

Counts = np.ndarray | Sequence[float]


def smoothed_shares(counts_B: Counts) -> np.ndarray:
    """Return (count + 0.5) / (total + B / 2): no share is zero, and equal counts give equal shares."""
    counts = np.asarray(counts_B, dtype=np.float64)
    return np.asarray((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))


def psi(reference_B: Counts, current_B: Counts) -> float:
    """Return the population stability index of two counts over the same categories."""
    p_B, q_B = smoothed_shares(reference_B), smoothed_shares(current_B)
    return float(((q_B - p_B) * np.log(q_B / p_B)).sum())


def kl_divergence(reference_B: Counts, current_B: Counts) -> float:
    """Return KL(current || reference) in nats."""
    p_B, q_B = smoothed_shares(reference_B), smoothed_shares(current_B)
    return float((q_B * np.log(q_B / p_B)).sum())
