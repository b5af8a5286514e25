"""Intervals of stratified proportions cover the truth as often as they say."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.evaluation.stratified import Stratum, estimate_proportion

# rows, drawn rows and share with the property, by stratum
POPULATIONS: dict[str, tuple[Sequence[int], Sequence[int], Sequence[float]]] = {
    "one stratum": ([100_000], [200], [0.9]),
    "rare defects": ([100_000], [200], [0.02]),
    "proportional": ([50_000, 20_000, 10_000, 5000, 1000], [100, 40, 20, 10, 2], [0.95, 0.9, 0.8, 0.6, 0.4]),
    "square roots": ([200_000, 50_000, 3000, 500, 60], [120, 60, 15, 6, 2], [0.97, 0.9, 0.5, 0.3, 0.2]),
    "two of each": ([1000] * 40, [2] * 40, np.linspace(0.6, 1, 40).tolist()),
    "one of each": ([1000] * 30, [1] * 30, np.linspace(0.5, 1, 30).tolist()),
    "most rows drawn": ([40, 60, 200], [30, 30, 60], [0.7, 0.8, 0.9]),
}


@pytest.mark.parametrize("population", POPULATIONS)
def test_95_percent_intervals_cover_about_95_percent(population: str) -> None:
    rows_H, drawn_H, share_H = (np.array(values) for values in POPULATIONS[population])
    hits_H = np.round(rows_H * share_H).astype(int)
    truth, rng, num_draws = hits_H.sum() / rows_H.sum(), np.random.default_rng(17), 1500
    found = [
        estimate_proportion(
            [Stratum(*map(int, stratum)) for stratum in zip(rows_H, drawn_H, x_H, strict=True)]
        )
        for x_H in rng.hypergeometric(hits_H, rows_H - hits_H, drawn_H, (num_draws, len(rows_H)))
    ]
    covered = np.mean([share.low <= truth <= share.high for share in found])
    assert 0.92 <= covered <= 0.98
    assert np.mean([share.value for share in found]) == pytest.approx(truth, abs=0.005)  # unbiased


def test_all_rows_drawn_leave_no_doubt() -> None:
    share = estimate_proportion([Stratum(10, 10, 3), Stratum(30, 30, 30)])
    assert (share.value, share.low, share.high, share.drawn) == (33 / 40, 33 / 40, 33 / 40, 40)


@pytest.mark.parametrize("hits", [0, 50])
def test_unanimous_sample_has_an_interval(hits: int) -> None:
    share = estimate_proportion([Stratum(1000, 25, hits // 2), Stratum(3000, 25, hits // 2)])
    assert share.value == hits / 50 and 0 <= share.low <= share.value <= share.high <= 1
    assert 0.05 < share.high - share.low < 0.15


def test_strata_count_by_their_rows_and_not_by_drawn_rows() -> None:
    share = estimate_proportion([Stratum(900, 10, 10), Stratum(100, 90, 0)])
    assert share.value == pytest.approx(0.9) and share.low < 0.9 < share.high
