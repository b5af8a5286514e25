"""Drift of score distributions: population stability index and label rates by task and market."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.psi import psi
from pipeline.evaluation.score_reference import Profile

MIN_ROWS = 100  # on both sides; an index of fewer rows is mostly chance

ALL_MARKETS = "all markets"


@dataclass(frozen=True)
class DriftRow:
    """Drift of one task in one market, or in all of them."""

    task: str
    market: str
    rows: int
    psi: float  # population stability index of the probabilities
    label_rates: tuple[float, ...]
    label_rates_before: tuple[float, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "DriftRow":
        """Parse the recorded form."""
        rates = {name: tuple(fields[name]) for name in ("label_rates", "label_rates_before")}
        return cls(**{**fields, **rates})

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        rates = {name: list(getattr(self, name)) for name in ("label_rates", "label_rates_before")}
        return asdict(self) | rates


def compare_profiles(profiles: Mapping[str, Profile], reference: Mapping[str, Profile]) -> list[DriftRow]:
    """Compare profiles by task, and by market where a task has several.

    Pairs with fewer than MIN_ROWS rows on either side, or with other labels, are left out.
    """
    rows = []
    for task, profile in profiles.items():
        markets = sorted(profile) if len(profile) > 1 else []
        for market in [ALL_MARKETS, *markets]:
            current = _market_counts(profile, market)
            earlier = _market_counts(reference.get(task, {}), market)
            same_labels = len(current["labels"]) == len(earlier["labels"])
            if not same_labels or min(sum(current["labels"]), sum(earlier["labels"])) < MIN_ROWS:
                continue
            rows.append(
                DriftRow(
                    task=task,
                    market=market,
                    rows=sum(current["labels"]),
                    psi=psi(earlier["probability"], current["probability"]),
                    label_rates=_rates(current["labels"]),
                    label_rates_before=_rates(earlier["labels"]),
                )
            )
    return rows


def _market_counts(profile: Mapping[str, Mapping[str, list[int]]], market: str) -> dict[str, list[int]]:
    """Return the counts of one market, or the sum over ALL_MARKETS."""
    chosen = [counts for name, counts in profile.items() if market in (ALL_MARKETS, name)]
    return {
        name: [sum(values) for values in zip(*(counts[name] for counts in chosen), strict=True)]
        for name in ("probability", "labels")
    }


def _rates(counts: list[int]) -> tuple[float, ...]:
    return tuple((np.asarray(counts) / sum(counts)).tolist())
