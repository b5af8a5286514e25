"""How far two distributions lie apart.

For shares p of the reference and q of the current rows over B categories, smoothed as (count + 0.5) / (total + B / 2) so that a new or vanished
category stays finite and equal counts give exactly 0:

    PSI = sum (q - p) ln(q / p)        KL = sum q ln(q / p), in nats

PSI is the symmetric sum of two KL divergences (S. Kullback and R. A. Leibler, Ann. Math. Stat. 22, 1951). 0.1 to look and 0.25 for drift
are the credit industry's rule (N. Siddiqi, Credit Risk Scorecards, 2006), blind to the number of rows: by chance alone PSI is about
chi-square with B - 1 degrees of freedom times 1 / n + 1 / m (B. Yurdakul, Statistical Properties of Population Stability Index, 2018).
So a feature must also pass that limit. n and m are distinct queries, not rows, for rows of one query are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from validation.profile import OTHERS

Counts = Mapping[str, float]  # by category

NUM_LENGTH_GROUPS = 10


def divergence(before: Counts, after: Counts) -> tuple[float, float, int]:
    """PSI, KL(current || reference) and the number of categories that either side holds."""
    categories = sorted(c for c in set(before) | set(after) if before.get(c, 0) or after.get(c, 0))
    p, q = (np.array([side.get(c, 0) for c in categories], dtype=np.float64) for side in (before, after))
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(categories)) for counts in (p, q))
    log = np.log(q / p)
    return float(((q - p) * log).sum()), float((q * log).sum()), len(categories)


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
    names = [f"{start}-{end - 1} chars" if end else f"{start}+ chars" for start, end in zip(starts, [*starts[1:], 0], strict=True)]
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
    return named | {OTHERS: named.get(OTHERS, 0) + sum(count for category, count in after.items() if category not in before)}
