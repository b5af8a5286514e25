"""Whether what is said of today's rows is spread as it was: population stability indices and label rates by
task and market.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.evaluation.psi import psi
from pipeline.evaluation.score_reference import Profile

MIN_ROWS = 100  # on both sides; an index of fewer rows is mostly chance

WHOLE = "all markets"


def drift_rows(profiles: Mapping[str, Profile], reference: Mapping[str, Profile]) -> list[dict[str, Any]]:
    """A line for each task, and market where it has several, that has rows enough on both sides."""
    found = []
    for task, profile in profiles.items():
        for market in [WHOLE, *(sorted(profile) if len(profile) > 1 else [])]:
            now, then = of_market(profile, market), of_market(reference.get(task, {}), market)
            if min(sum(now["labels"]), sum(then["labels"])) < MIN_ROWS or len(now["labels"]) != len(
                then["labels"]
            ):
                continue
            rates, before = (np.asarray(one["labels"]) / sum(one["labels"]) for one in (now, then))
            found.append(
                {
                    "task": task,
                    "market": market,
                    "rows": sum(now["labels"]),
                    "psi": psi(then["probability"], now["probability"]),
                    "label_rates": rates.tolist(),
                    "label_rates_before": before.tolist(),
                }
            )
    return found


def of_market(profile: Mapping[str, Mapping[str, list[int]]], market: str) -> dict[str, list[int]]:
    """The counts of one market, or of all together."""
    chosen = [counts for name, counts in profile.items() if market in (WHOLE, name)]
    return {
        name: [sum(values) for values in zip(*(counts[name] for counts in chosen), strict=True)]
        for name in ("probability", "labels")
    }
