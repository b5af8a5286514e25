"""Figures are scikit-learn's, and their intervals redraw whole queries."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.metrics import average_precisions, calibration_error, f1_score, interval, query_draws, roc_aucs, task_figures


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (half the cases full of ties), truths of both classes, and weights with zeros among them."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 60))
    score_N = random.random(count) if seed % 2 else random.integers(0, 4, count) / 4
    positive_N = random.random(count) < random.uniform(0.1, 0.9)
    positive_N[:2] = True, False
    weight_N = random.choice([0.0, 0.5, 1.0, 3.0], count) if seed % 3 else np.ones(count)
    weight_N[:2] = 1.0
    return score_N, positive_N, weight_N


def test_pr_auc_and_roc_auc_are_scikit_learn_s_with_weights_and_ties() -> None:
    for seed in range(300):
        score_N, positive_N, weight_N = random_case(seed)
        weight_DN = np.stack([weight_N, np.ones(len(score_N))])
        for weights, pr_auc, roc_auc in zip(
            weight_DN, average_precisions(score_N, positive_N, weight_DN), roc_aucs(score_N, positive_N, weight_DN), strict=True
        ):
            assert pr_auc == pytest.approx(sk.average_precision_score(positive_N, score_N, sample_weight=weights), abs=1e-12), seed
            assert roc_auc == pytest.approx(sk.roc_auc_score(positive_N, score_N, sample_weight=weights), abs=1e-12), seed


def test_figures_do_not_depend_on_the_order_of_the_rows() -> None:
    for seed in range(100):
        score_N, positive_N, _ = random_case(seed)
        order = np.random.default_rng(seed).permutation(len(score_N))
        assert task_figures(score_N[order], positive_N[order]) == pytest.approx(task_figures(score_N, positive_N), abs=1e-12)


def test_figures_are_those_of_scikit_learn() -> None:
    for seed in range(1, 100, 2):
        probability_N, positive_N, _ = random_case(seed)
        figures = task_figures(probability_N, positive_N)
        assert figures["brier"] == pytest.approx(sk.brier_score_loss(positive_N, probability_N))
        assert figures["log_loss"] == pytest.approx(sk.log_loss(positive_N, probability_N))
        assert figures["f1"] == pytest.approx(sk.f1_score(positive_N, probability_N >= 0.5, zero_division=0))
        assert figures["roc_auc"] == pytest.approx(sk.roc_auc_score(positive_N, probability_N))
        assert figures["pr_auc"] == pytest.approx(sk.average_precision_score(positive_N, probability_N))


def test_certain_and_wrong_is_a_finite_loss() -> None:
    assert 10 < task_figures(np.array([0.0, 1.0]), np.array([True, False]))["log_loss"] < 20


def test_a_draw_without_a_class_has_no_figure_and_makes_no_noise() -> None:
    score_N, positive_N = np.array([0.1, 0.9]), np.array([True, False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(average_precisions(score_N, positive_N, np.array([[0.0, 2.0]]))).all()
        assert np.isnan(roc_aucs(score_N, positive_N, np.array([[0.0, 2.0], [2.0, 0.0]]))).all()


def test_rows_of_a_query_rise_and_fall_together_and_queries_are_drawn_with_replacement() -> None:
    query_N = np.array(["b", "a", "b", "c", "a", "b"], dtype=object)
    weight_DN = query_draws(query_N, 500, seed=0)
    assert weight_DN.shape == (500, 6)
    assert np.array_equal(weight_DN[:, 0], weight_DN[:, 2]) and np.array_equal(weight_DN[:, 0], weight_DN[:, 5])
    assert np.array_equal(weight_DN[:, 1], weight_DN[:, 4])
    assert (weight_DN[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weight_DN[:, [0, 1, 3]].mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)
    assert set(weight_DN[:, 0]) == {0.0, 1.0, 2.0, 3.0}


def test_draws_follow_from_the_seed() -> None:
    query_N = np.array([str(n % 9) for n in range(40)], dtype=object)
    assert np.array_equal(query_draws(query_N, 20, 1), query_draws(query_N, 20, 1))
    assert not np.array_equal(query_draws(query_N, 20, 1), query_draws(query_N, 20, 2))


def clustered_case(seed: int, num_queries: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose labels and scores hang together within a query: (scores, truths, queries)."""
    random = np.random.default_rng(seed)
    query_N = np.repeat(np.arange(num_queries), 6)
    lean_N = np.repeat(random.normal(0, 1.5, num_queries), 6)
    positive_N = random.random(len(query_N)) < 1 / (1 + np.exp(-lean_N))
    score_N = lean_N + positive_N + random.normal(0, 1.5, len(query_N))
    return score_N, positive_N, query_N


def test_intervals_hold_their_value_and_nearly_always_the_truth() -> None:
    score_N, positive_N, query_N = clustered_case(0, num_queries=20_000)
    truth = average_precisions(score_N, positive_N, np.ones((1, len(score_N))))[0]
    hits = inside = 0
    for seed in range(1, 101):
        score_N, positive_N, query_N = clustered_case(seed)
        value = average_precisions(score_N, positive_N, np.ones((1, len(score_N))))[0]
        found = interval(value, average_precisions(score_N, positive_N, query_draws(query_N, 300, seed)))
        assert found.value == value
        inside += found.low < value < found.high
        hits += found.low < truth < found.high
    assert inside >= 99
    assert 85 <= hits <= 100  # of 100 intervals meant to hold it 95 times


def test_an_interval_is_the_middle_of_its_draws_and_leaves_out_those_without_a_value() -> None:
    draw_D = np.append(np.arange(1001.0), [np.nan] * 50)
    found = interval(500.0, np.random.default_rng(0).permutation(draw_D))
    assert (found.low, found.value, found.high) == (25.0, 500.0, 975.0)
    empty = interval(0.5, np.array([np.nan, np.nan]))
    assert empty.value == 0.5 and np.isnan(empty.low) and np.isnan(empty.high)


def test_a_perfect_forecast_has_no_calibration_error() -> None:
    positive_N = np.random.default_rng(0).random(1_000) < 0.3
    assert calibration_error(positive_N.astype(float), positive_N) == 0


@pytest.mark.parametrize("order", ["positives first", "shuffled"])
def test_saying_the_base_rate_for_all_has_no_calibration_error_in_any_order(order: str) -> None:
    positive_N = np.arange(1_000) < 300
    if order == "shuffled":
        positive_N = np.random.default_rng(1).permutation(positive_N)
    assert calibration_error(np.full(1_000, 0.3), positive_N) == pytest.approx(0, abs=1e-12)


def test_a_calibration_error_is_the_distance_from_what_came_true() -> None:
    probability_N = np.repeat(np.linspace(0.05, 0.95, 10), 1_000)
    random = np.random.default_rng(2)
    assert calibration_error(probability_N, random.random(10_000) < probability_N) < 0.02
    assert calibration_error(np.full(1_000, 0.9), np.arange(1_000) % 2 == 0) == pytest.approx(0.4)
    assert calibration_error(probability_N, random.random(10_000) < probability_N**3) == pytest.approx(
        float(np.mean(probability_N - probability_N**3)), abs=0.02
    )


def test_errors_of_opposite_sign_do_not_cancel() -> None:
    probability_N = np.array([0.2] * 50 + [0.8] * 50)
    assert calibration_error(probability_N, np.array([True] * 50 + [False] * 50)) == pytest.approx(0.8)


def test_fewer_rows_than_bins_have_a_calibration_error() -> None:
    assert calibration_error(np.array([0.25, 0.75]), np.array([False, True])) == pytest.approx(0.25)


def test_f1_is_zero_where_nothing_is_decided_or_true() -> None:
    nothing = np.zeros(4, dtype=bool)
    assert f1_score(nothing, nothing) == 0
    assert f1_score(nothing, ~nothing) == 0
    assert f1_score(~nothing, ~nothing) == 1
