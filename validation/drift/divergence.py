"""Distance between two counts of a feature, and the distance that chance alone produces.

A drift must exceed both a threshold of the PSI (`pipeline.evaluation.psi`) and the limit of chance. Chance is
computed from distinct queries, not rows, because rows of one query are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.psi import kl_divergence, psi
from validation.drift.profile import OTHERS

Counts = Mapping[str, float]  # by category

NUM_LENGTH_GROUPS = 10


class Divergence(NamedTuple):
    """Distance of the current counts from the reference counts."""

    psi: float
    kl: float  # KL(current || reference) in nats
    num_categories: int  # that occur on either side


def divergence(reference: Counts, current: Counts) -> Divergence:
    """Compute PSI and KL divergence over the categories that occur on either side."""
    categories = sorted(c for c in set(reference) | set(current) if reference.get(c, 0) or current.get(c, 0))
    p, q = (np.array([side.get(c, 0) for c in categories], dtype=np.float64) for side in (reference, current))
    return Divergence(psi(p, q), kl_divergence(p, q), len(categories))


def chance_limit(degrees_of_freedom: int, num_queries: Sequence[float], rate: float) -> float:
    """Return the PSI that chance alone exceeds at a rate.

    Args:
        degrees_of_freedom: Number of categories less one, summed over groups.
        num_queries: Distinct queries of the reference and of the current rows.
        rate: Probability between 0 and 1.
    """
    from scipy.stats import chi2

    return float(chi2.isf(rate, degrees_of_freedom) * sum(1 / max(n, 1) for n in num_queries))


def group_by_deciles(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    """Sum length counts over ranges that each hold about a tenth of the reference."""
    total, passed, starts = sum(reference.values()), 0.0, [0]
    for edge in sorted(reference, key=int):
        if passed >= total * len(starts) / NUM_LENGTH_GROUPS:
            starts.append(int(edge))
        passed += reference[edge]
    names = [f"{start}-{end - 1} chars" for start, end in zip(starts, starts[1:], strict=False)]
    names.append(f"{starts[-1]}+ chars")

    def grouped(counts: Counts) -> Counts:
        groups = dict.fromkeys(names, 0.0)
        for edge, count in counts.items():
            groups[names[int(np.searchsorted(starts, int(edge), side="right")) - 1]] += count
        return groups

    return grouped(reference), grouped(current)


def group_unnamed(reference: Counts, current: Counts) -> Counts:
    """Sum the current categories that the reference does not name under OTHERS."""
    named = {category: count for category, count in current.items() if category in reference}
    unnamed = sum(count for category, count in current.items() if category not in reference)
    return named | {OTHERS: named.get(OTHERS, 0) + unnamed}
