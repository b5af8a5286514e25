"""Bootstrap intervals draw whole queries, in blocks of bounded memory."""

import numpy as np
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import ClusterBootstrap, interval
from pipeline.evaluation.metrics import ranking_metrics


def weights(query_N: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    return np.concatenate(list(ClusterBootstrap(query_N, seed, num_draws).weight_blocks()))


def test_queries_are_drawn_whole_and_with_replacement() -> None:
    query_N = np.array(["b", "a", "b", "c", "a", "b"], dtype=object)
    weight_DN = weights(query_N, 500, seed=0)
    assert weight_DN.shape == (500, 6)
    assert np.array_equal(weight_DN[:, 0], weight_DN[:, 2]) and np.array_equal(
        weight_DN[:, 0], weight_DN[:, 5]
    )
    assert np.array_equal(weight_DN[:, 1], weight_DN[:, 4])
    assert (weight_DN[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weight_DN[:, [0, 1, 3]].mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)
    assert set(weight_DN[:, 0]) == {0.0, 1.0, 2.0, 3.0}


def test_equal_seeds_give_equal_draws() -> None:
    query_N = np.array([str(n % 9) for n in range(40)], dtype=object)
    assert np.array_equal(weights(query_N, 20, 1), weights(query_N, 20, 1))
    assert not np.array_equal(weights(query_N, 20, 1), weights(query_N, 20, 2))


def test_blocks_bound_memory_and_cover_every_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK_WEIGHTS", 350)
    bootstrapped = ClusterBootstrap(np.arange(100), seed=3, num_draws=50)
    assert [block.shape for block in bootstrapped.weight_blocks()] == [(3, 100)] * 16 + [(2, 100)]
    found = bootstrapped.draws(lambda weight_DN: {"sum": weight_DN.sum(1), "first": weight_DN[:, 0]})
    assert found["sum"].tolist() == [100.0] * 50
    assert found["first"].tolist() == weights(np.arange(100), 50, 3)[:, 0].tolist()


def clustered_case(seed: int, num_queries: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, labels and queries of rows that correlate within a query."""
    random = np.random.default_rng(seed)
    query_N = np.repeat(np.arange(num_queries), 6)
    lean_N = np.repeat(random.normal(0, 1.5, num_queries), 6)
    positive_N = random.random(len(query_N)) < 1 / (1 + np.exp(-lean_N))
    score_N = lean_N + positive_N + random.normal(0, 1.5, len(query_N))
    return score_N, positive_N, query_N


def test_intervals_cover_the_true_value() -> None:
    score_N, positive_N, query_N = clustered_case(0, num_queries=20_000)
    truth = ranking_metrics(score_N, positive_N, np.ones((1, len(score_N))))["pr_auc"][0]
    hits = inside = 0
    for seed in range(1, 101):
        score_N, positive_N, query_N = clustered_case(seed)
        value = ranking_metrics(score_N, positive_N, np.ones((1, len(score_N))))["pr_auc"][0]
        draws = ClusterBootstrap(query_N, seed, 300).draws(
            lambda weight_DN, s=score_N, p=positive_N: ranking_metrics(s, p, weight_DN)
        )
        found = interval(value, draws["pr_auc"])
        assert found.value == value
        inside += found.low < value < found.high
        hits += found.low < truth < found.high
    assert inside >= 99
    assert 85 <= hits <= 100  # of 100 intervals at 95 %


def test_interval_is_the_percentiles_of_finite_draws() -> None:
    draw_D = np.append(np.arange(1001.0), [np.nan] * 50)
    found = interval(500.0, np.random.default_rng(0).permutation(draw_D))
    assert (found.low, found.value, found.high) == (25.0, 500.0, 975.0)
    empty = interval(0.5, np.array([np.nan, np.nan]))
    assert empty.value == 0.5 and np.isnan(empty.low) and np.isnan(empty.high)
