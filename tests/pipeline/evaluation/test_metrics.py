"""Metrics equal those of scikit-learn, under weights, with ties, in any order of the rows."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.evaluation.metrics import (
    NUM_BINS,
    calibration_metrics,
    decision_metrics,
    equal_mass_bins,
    label_metrics,
    ndcg,
    ranking_metrics,
)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (half the cases full of ties), truths of both classes, and two weightings, zeros among them."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 60))
    score_N = random.random(count) if seed % 2 else random.integers(0, 4, count) / 4
    positive_N = random.random(count) < random.uniform(0.1, 0.9)
    positive_N[:2] = True, False
    weight_N = random.choice([0.0, 0.5, 1.0, 3.0], count)
    weight_N[:2] = 1.0
    return score_N, positive_N, np.stack([weight_N, np.ones(count)])


def test_roc_and_pr_aucs_equal_scikit_learn() -> None:
    for seed in range(300):
        score_N, positive_N, weight_DN = random_case(seed)
        found = ranking_metrics(score_N, positive_N, weight_DN)
        for draw, weight_N in enumerate(weight_DN):
            assert found["pr_auc"][draw] == pytest.approx(
                sk.average_precision_score(positive_N, score_N, sample_weight=weight_N), abs=1e-12
            ), seed
            defects = sk.average_precision_score(~positive_N, -score_N, sample_weight=weight_N)
            assert found["defect_pr_auc"][draw] == pytest.approx(defects, abs=1e-12), seed
            assert found["roc_auc"][draw] == pytest.approx(
                sk.roc_auc_score(positive_N, score_N, sample_weight=weight_N), abs=1e-12
            ), seed


def test_precision_at_recall_uses_the_highest_threshold() -> None:
    for seed in range(200):
        score_N, positive_N, weight_DN = random_case(seed)
        found = ranking_metrics(score_N, positive_N, weight_DN)
        for draw, weight_N in enumerate(weight_DN):
            for recall in (0.5, 0.8, 0.9):
                for threshold in sorted(set(score_N), reverse=True):
                    at = score_N >= threshold
                    hits = weight_N[at & positive_N].sum()
                    if hits >= recall * weight_N[positive_N].sum() - 1e-9:
                        break
                assert found[f"precision_at_recall_{recall}"][draw] == pytest.approx(
                    hits / weight_N[at].sum()
                ), seed


def test_brier_and_log_loss_equal_scikit_learn() -> None:
    for seed in range(1, 100, 2):
        probability_N, positive_N, weight_DN = random_case(seed)
        found = calibration_metrics(probability_N, positive_N, weight_DN)
        for draw, weight_N in enumerate(weight_DN):
            assert found["brier"][draw] == pytest.approx(
                sk.brier_score_loss(positive_N, probability_N, sample_weight=weight_N)
            )
            assert found["log_loss"][draw] == pytest.approx(
                sk.log_loss(positive_N, probability_N, sample_weight=weight_N)
            )


def test_wrong_certainty_has_a_finite_loss() -> None:
    found = calibration_metrics(np.array([0.0, 1.0]), np.array([True, False]), np.ones((1, 2)))
    assert 10 < found["log_loss"][0] < 20


def test_f1_and_kappa_equal_scikit_learn() -> None:
    for seed in range(200):
        random = np.random.default_rng(seed)
        label_N, decided_N = random.integers(0, 4, (2, int(random.integers(2, 50))))
        weight_DN = random.choice([0.5, 1.0, 3.0], (2, len(label_N)))
        found = label_metrics(decided_N, label_N, 4, weight_DN)
        for draw, weight_N in enumerate(weight_DN):
            assert found["macro_f1"][draw] == pytest.approx(
                sk.f1_score(label_N, decided_N, average="macro", sample_weight=weight_N)
            )
            by_label = sk.f1_score(
                label_N,
                decided_N,
                average=None,
                labels=range(4),
                sample_weight=weight_N,
                zero_division=np.nan,
            )
            assert [found[f"f1_{label}"][draw] for label in range(4)] == pytest.approx(
                list(by_label), nan_ok=True
            )
            kappa = sk.cohen_kappa_score(
                label_N, decided_N, weights="quadratic", labels=range(4), sample_weight=weight_N
            )
            assert found["quadratic_kappa"][draw] == pytest.approx(kappa, nan_ok=True)


def test_ndcg_equals_scikit_learn_over_rankable_queries() -> None:
    for seed in range(100):
        random = np.random.default_rng(seed)
        count = int(random.integers(4, 60))
        label_N, query_N, grade_N = (
            random.integers(0, 4, count),
            random.integers(0, 6, count),
            random.random(count),
        )
        each = []
        for query in np.unique(query_N):
            rows = query_N == query
            if len(set(label_N[rows])) > 1:
                each.append(sk.ndcg_score([2.0 ** label_N[rows] - 1], [grade_N[rows]], k=10))
        found = ndcg(grade_N, label_N, query_N, np.ones((1, count)))["ndcg_at_10"][0]
        assert found == pytest.approx(np.mean(each) if each else np.nan, nan_ok=True)


def test_query_drawn_twice_counts_twice_in_ndcg() -> None:
    label_N, query_N, grade_N = np.array([1, 0, 0, 1]), np.array([0, 0, 1, 1]), np.array([1.0, 0.0, 1.0, 0.0])
    found = ndcg(
        grade_N, label_N, query_N, np.array([[1.0, 1, 1, 1], [2, 2, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    )["ndcg_at_10"]
    wrong = 1 / np.log2(3)
    assert found == pytest.approx([(1 + wrong) / 2, (2 + wrong) / 3, wrong, np.nan], nan_ok=True)


def test_metrics_do_not_depend_on_row_order() -> None:
    for seed in range(100):
        score_N, positive_N, weight_DN = random_case(seed)
        order = np.random.default_rng(seed).permutation(len(score_N))
        for figures in (ranking_metrics, calibration_metrics):
            straight, shuffled = (
                figures(score_N, positive_N, weight_DN),
                figures(score_N[order], positive_N[order], weight_DN[:, order]),
            )
            for name in straight:
                assert straight[name] == pytest.approx(shuffled[name], abs=1e-12), name


def test_draw_of_one_class_is_nan_without_warnings() -> None:
    score_N, positive_N = np.array([0.1, 0.9]), np.array([True, False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ranking_metrics(score_N, positive_N, np.array([[0.0, 2.0], [2.0, 0.0], [0.0, 0.0]]))
        labels = label_metrics(np.array([0, 1]), np.array([0, 1]), 2, np.zeros((1, 2)))
    assert (
        np.isnan(found["roc_auc"]).all()
        and np.isnan(found["pr_auc"][[0, 2]]).all()
        and np.isnan(found["defect_pr_auc"][[1, 2]]).all()
    )
    assert all(np.isnan(value).all() for value in labels.values())


def calibration_error(probability_N: Any, positive_N: Any) -> float:
    return float(
        calibration_metrics(probability_N, positive_N, np.ones((1, len(positive_N))))["calibration_error"][0]
    )


def test_perfect_forecast_has_no_calibration_error() -> None:
    positive_N = np.random.default_rng(0).random(1_000) < 0.3
    assert calibration_error(positive_N.astype(float), positive_N) == 0


@pytest.mark.parametrize("order", ["positives first", "shuffled"])
def test_base_rate_forecast_has_no_calibration_error(order: str) -> None:
    positive_N = np.arange(1_000) < 300
    if order == "shuffled":
        positive_N = np.random.default_rng(1).permutation(positive_N)
    assert calibration_error(np.full(1_000, 0.3), positive_N) == pytest.approx(0, abs=1e-12)


def test_calibration_error_is_the_distance_from_observed_shares() -> None:
    probability_N = np.repeat(np.linspace(0.05, 0.95, 10), 1_000)
    positive_N = np.random.default_rng(2).random(10_000) < probability_N
    assert calibration_error(probability_N, positive_N) < 0.015
    assert calibration_error((probability_N + 0.05).clip(0, 1), positive_N) == pytest.approx(0.05, abs=0.015)


def test_bins_have_equal_mass() -> None:
    assert np.bincount(equal_mass_bins(np.random.default_rng(0).random(1_000))).tolist() == [100] * NUM_BINS
    assert len(set(equal_mass_bins(np.full(10, 0.3)).tolist())) == 1


def test_defect_rate_counts_rows_decided_relevant() -> None:
    decision_N = np.array(["relevant", "relevant", "abstain", "irrelevant"])
    found = decision_metrics(
        decision_N,
        np.array([True, False, False, True]),
        np.array([[1.0, 1, 1, 1], [3, 1, 0, 0], [0, 0, 1, 1]]),
    )
    assert found["defect_rate"] == pytest.approx([0.5, 0.25, np.nan], nan_ok=True)
    assert found["decided_share"] == pytest.approx([0.75, 1.0, 0.5])
