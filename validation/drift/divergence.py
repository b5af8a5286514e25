"""Distances of a feature's counts before and after, and what chance alone makes of them.

A drift must pass the PSI's threshold and what chance passes (`pipeline.evaluation.psi`). Chance counts
distinct queries, not rows, since rows of one query are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.evaluation.psi import kl_divergence, psi
from validation.drift.profile import OTHERS

Counts = Mapping[str, float]  # by category

NUM_LENGTH_GROUPS = 10


def divergence(before: Counts, after: Counts) -> tuple[float, float, int]:
    """PSI, KL(current || reference) and the number of categories that either side holds."""
    categories = sorted(c for c in set(before) | set(after) if before.get(c, 0) or after.get(c, 0))
    p, q = (np.array([side.get(c, 0) for c in categories], dtype=np.float64) for side in (before, after))
    return psi(p, q), kl_divergence(p, q), len(categories)


def chance_limit(freedom: int, queries: Sequence[float], chance: float) -> float:
    """The PSI that chance alone passes at the rate `chance`."""
    from scipy.stats import chi2

    return float(chi2.isf(chance, freedom) * sum(1 / max(n, 1) for n in queries))


def in_tenths(before: Counts, after: Counts) -> tuple[Counts, Counts]:
    """Both sides over ranges that each hold about a tenth of the reference."""
    total, passed, starts = sum(before.values()), 0.0, [0]
    for edge in sorted(before, key=int):
        if passed >= total * len(starts) / NUM_LENGTH_GROUPS:
            starts.append(int(edge))
        passed += before[edge]
    names = [
        f"{start}-{end - 1} chars" if end else f"{start}+ chars"
        for start, end in zip(starts, [*starts[1:], 0], strict=True)
    ]
    sides: list[dict[str, float]] = []
    for counts in (before, after):
        side = dict.fromkeys(names, 0.0)
        for edge, count in counts.items():
            side[names[int(np.searchsorted(starts, int(edge), side="right")) - 1]] += count
        sides.append(side)
    return sides[0], sides[1]


def under_others(before: Counts, after: Counts) -> Counts:
    """Categories that the reference keeps no name of, as one."""
    named = {category: count for category, count in after.items() if category in before}
    return named | {
        OTHERS: named.get(OTHERS, 0)
        + sum(count for category, count in after.items() if category not in before)
    }
