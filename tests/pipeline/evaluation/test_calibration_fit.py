"""Probabilities mean what they say, and decisions keep the precision they promise."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.config.tasks import Task
from pipeline.evaluation.calibration_fit import (
    CONFIDENCE,
    MIN_MARKET_ROWS,
    choose_method,
    fit_calibration,
    fit_method,
    fit_temperature,
    lower_bound,
    precision_threshold,
)
from pipeline.inference.calibration import (
    Calibration,
    Thresholds,
    calibrated_probabilities,
    decide,
    expected_grade,
    label_probabilities,
    relevance_probability,
)


def task(labels: int = 4, relevant_from: int = 2, target: float = 0.9) -> Task:
    names = tuple(f"l{n}" for n in range(labels))
    return Task(
        name="t",
        labels=names,
        relevant_from=relevant_from,
        template="{query} {ad_title}",
        target_precision=target,
    )


def planted(temperature: float, rows: int = 30_000, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sharp or too flat by `temperature`, and labels drawn from what they should say."""
    random = np.random.default_rng(0)
    logits_NC = random.normal(0, 2, (rows, labels)) * temperature
    cumulative_NC = label_probabilities(logits_NC, temperature).cumsum(axis=1)
    return logits_NC, (random.random((rows, 1)) > cumulative_NC).sum(axis=1).clip(max=labels - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 10.0])
def test_fit_recovers_the_temperature(temperature: float) -> None:
    logits_NC, label_N = planted(temperature)
    assert fit_temperature(logits_NC, label_N) == pytest.approx(temperature, rel=0.03)


def test_missing_labels_do_not_affect_the_temperature() -> None:
    logits_NC, label_N = planted(2.0, rows=3_000)
    wider_NC = np.concatenate([logits_NC, np.full((3_000, 2), -np.inf)], axis=1)
    assert fit_temperature(wider_NC, label_N) == pytest.approx(fit_temperature(logits_NC, label_N))


def test_all_right_or_all_wrong_hits_the_temperature_bounds() -> None:
    logits_NC = np.eye(4)[np.arange(40) % 4]
    assert fit_temperature(logits_NC, np.arange(40) % 4) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(logits_NC, (np.arange(40) + 1) % 4) == pytest.approx(20, rel=0.01)


def test_label_probabilities_sum_to_one() -> None:
    random = np.random.default_rng(1)
    logits_NC = random.normal(0, 300, (500, 5))
    logits_NC[:200, 3:] = -np.inf
    logits_NC[200:300, 1:] = -np.inf
    for temperature in (0.05, 1.0, 20.0):
        probability_NC = label_probabilities(logits_NC, temperature)
        assert probability_NC.sum(axis=1) == pytest.approx(1)
        assert not probability_NC[np.isinf(logits_NC)].any()
        assert np.array_equal(probability_NC.argmax(axis=1), logits_NC.argmax(axis=1))


def test_label_probabilities_are_a_tempered_softmax() -> None:
    assert label_probabilities(np.array([[0.0, np.log(9)]]), 1.0)[0] == pytest.approx([0.1, 0.9])
    assert label_probabilities(np.array([[0.0, np.log(9)]]), 2.0)[0] == pytest.approx([0.25, 0.75])


def test_relevance_and_grade_follow_from_label_probabilities() -> None:
    probability_NC = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    assert relevance_probability(probability_NC, task()) == pytest.approx([0.7, 0.0, 1.0])
    assert relevance_probability(probability_NC, task(relevant_from=3)) == pytest.approx([0.4, 0.0, 0.5])
    assert expected_grade(probability_NC) == pytest.approx([2.0, 0.0, 2.5])


def test_relevance_probability_stays_within_zero_and_one() -> None:
    thirds = np.full((1, 16), 1 / 16) * (1 + 1e-15)
    assert relevance_probability(thirds * 2, task(16, 1))[0] == 1.0


def random_logits(seed: int) -> tuple[np.ndarray, np.ndarray, Task]:
    """Rows of a random task with some truth in their logits; every other case full of ties, some cases
    lopsided.
    """
    random = np.random.default_rng(seed)
    labels = int(random.integers(2, 6))
    chosen = task(labels, int(random.integers(1, labels)), float(random.uniform(0.5, 0.97)))
    label_N = random.choice(labels, int(random.integers(1, 400)), p=random.dirichlet(np.ones(labels)))
    logits_NC = np.eye(labels)[label_N] * random.uniform(-1, 4) + random.normal(0, 1, (len(label_N), labels))
    return (np.round(logits_NC) if seed % 2 else logits_NC), label_N, chosen


def fit(logits_NC: np.ndarray, label_N: np.ndarray, chosen: Task) -> Calibration:
    """With a query a row and one market."""
    return fit_calibration(
        logits_NC, label_N, chosen, np.arange(len(label_N)), np.full(len(label_N), "us", dtype=object)
    )


def test_decisions_reach_the_target_precision() -> None:
    decided = {"relevant": 0, "irrelevant": 0}
    for seed in range(40):
        logits_NC, label_N, chosen = random_logits(seed)
        calibration = fit(logits_NC, label_N, chosen)
        probability_N = relevance_probability(
            calibrated_probabilities(logits_NC, calibration, chosen), chosen
        )
        decision_N = decide(probability_N, calibration).decision_N
        for word, truth_N in (
            ("relevant", label_N >= chosen.relevant_from),
            ("irrelevant", label_N < chosen.relevant_from),
        ):
            rows = decision_N == word
            if rows.any():
                decided[word] += 1
                assert (
                    lower_bound([truth_N[rows].sum()], [rows.sum()], CONFIDENCE)[0]
                    >= chosen.target_precision - 1e-9
                ), (seed, word)
    assert min(decided.values()) > 5


def test_every_row_has_one_decision() -> None:
    for seed in range(60):
        logits_NC, label_N, chosen = random_logits(seed)
        calibration = fit(logits_NC, label_N, chosen)
        if calibration.relevant_at is not None and calibration.irrelevant_below is not None:
            assert calibration.irrelevant_below <= calibration.relevant_at
        decision_N = decide(np.linspace(0, 1, 501), calibration).decision_N
        assert set(decision_N) <= {"relevant", "irrelevant", "abstain"}
        ranks = [{"irrelevant": 0, "abstain": 1, "relevant": 2}[word] for word in decision_N]
        assert ranks == sorted(ranks)


def test_thresholds_belong_to_the_upper_decision() -> None:
    calibration = Calibration(relevant_at=0.75, irrelevant_below=0.25)
    assert decide(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), calibration).decision_N.tolist() == [
        "irrelevant",
        "abstain",
        "abstain",
        "relevant",
        "relevant",
    ]


def test_without_thresholds_every_row_abstains() -> None:
    assert decide(np.array([0.0, 0.5, 1.0]), Calibration()).decision_N.tolist() == ["abstain"] * 3


def test_threshold_is_the_lowest_that_reaches_the_target() -> None:
    for seed in range(300):
        random = np.random.default_rng(seed)
        score_N = random.integers(0, 25, 120) / 25
        positive_N = random.random(120) < score_N ** random.uniform(0.1, 1)
        target = random.uniform(0.3, 0.95)
        good = [
            s
            for s in np.unique(score_N)
            if lower_bound([positive_N[score_N >= s].sum()], [(score_N >= s).sum()], CONFIDENCE)[0] >= target
        ]
        assert precision_threshold(score_N, positive_N, target) == (min(good) if good else None)


def test_lower_bound_matches_the_binomial_tail() -> None:
    for hits, count in ((1, 3), (20, 22), (50, 50), (400, 1_000)):
        bound = lower_bound([hits], [count], 0.9)[0]
        assert binom.sf(hits - 1, count, bound) == pytest.approx(0.1)
    assert lower_bound([0], [5], 0.9).tolist() == [0.0]


def test_equal_scores_get_equal_decisions() -> None:
    score_N = np.array([0.9] * 200 + [0.5] * 200)
    positive_N = np.array([True] * 200 + [True] * 100 + [False] * 100)
    # about three quarters over both groups: the second group comes whole or not at all
    assert precision_threshold(score_N, positive_N, 0.7) == 0.5
    assert precision_threshold(score_N, positive_N, 0.75) == 0.9


def test_too_few_rows_give_no_threshold() -> None:
    few, enough = np.full(21, 0.9), np.full(22, 0.9)
    assert precision_threshold(few, few > 0, 0.9) is None
    assert precision_threshold(enough, enough > 0, 0.9) == 0.9


def test_large_markets_have_their_own_thresholds() -> None:
    random = np.random.default_rng(0)
    market_N = np.repeat(
        np.asarray(["easy", "hard", "small"], dtype=object),
        [MIN_MARKET_ROWS, MIN_MARKET_ROWS, MIN_MARKET_ROWS - 1],
    )
    label_N = random.integers(0, 2, len(market_N))
    noise_N = np.where(market_N == "hard", 4.0, 0.5)
    score_N = 4 * (label_N - 0.5) + random.normal(0, 1, len(market_N)) * noise_N
    fitted = fit_calibration(
        np.stack([np.zeros_like(score_N), score_N], 1),
        label_N,
        task(2, 1),
        np.arange(len(market_N)),
        market_N,
    )
    assert set(fitted.markets) == {"easy", "hard"}
    mine, common = fitted.markets["hard"].relevant_at, fitted.relevant_at
    assert mine is None or common is None or mine > common
    assert decide(
        np.full(3, 0.7),
        Calibration(relevant_at=0.6, markets={"hard": Thresholds(relevant_at=0.8)}),
        ["easy", "hard", "new"],
    ).decision_N.tolist() == [
        "relevant",
        "abstain",
        "relevant",
    ]


def leaning(shape: str, rows: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Two-label logits whose log odds are bent, and labels drawn from what they should say."""
    random = np.random.default_rng(1)
    odds_N = random.normal(0, 2, rows)
    label_N = (random.random(rows) < 1 / (1 + np.exp(-odds_N))).astype(int)
    bent_N = {
        "straight": 2 * odds_N,
        "shifted": 2 * odds_N + 3,
        "stepped": np.sign(odds_N) * np.abs(odds_N) ** 3,
    }[shape]
    return np.stack([np.zeros(rows), bent_N], axis=1), label_N


@pytest.mark.parametrize(
    ("shape", "method"), [("straight", "temperature"), ("shifted", "platt"), ("stepped", "isotonic")]
)
def test_held_out_rows_choose_the_method(shape: str, method: str) -> None:
    logits_NC, label_N = leaning(shape)
    assert choose_method(logits_NC, label_N, task(2, 1), np.arange(len(label_N))) == method


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_methods_keep_order_and_label_proportions(
    method: str,
) -> None:
    random = np.random.default_rng(2)
    logits_NC, label_N = random.normal(0, 2, (600, 4)), random.integers(0, 4, 600)
    label_N = np.where(random.random(600) < 0.7, logits_NC.argmax(1), label_N)
    chosen = task()
    fitted = fit_method(method, logits_NC, label_N, chosen)  # type: ignore[arg-type]
    assert fitted.method == method and Calibration(**fitted.model_dump(mode="json")) == fitted
    before_NC, after_NC = (
        label_probabilities(logits_NC, fitted.temperature),
        calibrated_probabilities(logits_NC, fitted, chosen),
    )
    assert after_NC.sum(1) == pytest.approx(np.ones(600))
    order = np.argsort(relevance_probability(before_NC, chosen))
    assert (np.diff(relevance_probability(after_NC, chosen)[order]) >= -1e-12).all()
    assert after_NC[:, 0] / after_NC[:, 1] == pytest.approx(before_NC[:, 0] / before_NC[:, 1])
    assert after_NC[:, 2] / after_NC[:, 3] == pytest.approx(before_NC[:, 2] / before_NC[:, 3])


def test_extreme_logits_stay_probabilities() -> None:
    logits_NC = np.array([[800.0, 0, 0, 0], [0, 0, 0, 800.0], [-800.0, -800, 800, 800]])
    for calibration in (
        Calibration(method="platt", slope=0.5, intercept=1),
        Calibration(method="isotonic", curve=((0.0, 0.1), (1.0, 0.9))),
    ):
        probability_NC = calibrated_probabilities(logits_NC, calibration, task())
        assert np.isfinite(probability_NC).all() and probability_NC.sum(1) == pytest.approx(np.ones(3))


def test_no_rows_give_the_identity_calibration() -> None:
    assert fit(np.zeros((0, 4)), np.zeros(0, int), task()) == Calibration(temperature=1.0)


def test_rows_of_one_class_get_one_decision() -> None:
    logits_NC = np.random.default_rng(0).normal(0, 1, (50, 2))
    assert fit(logits_NC, np.ones(50, int), task(2, 1)).irrelevant_below is None
    irrelevant = fit(logits_NC, np.zeros(50, int), task(2, 1))
    assert irrelevant.relevant_at is None
    probability_N = relevance_probability(label_probabilities(logits_NC, irrelevant.temperature), task(2, 1))
    assert (decide(probability_N, irrelevant).decision_N == "irrelevant").all()


def test_calibration_survives_json_bit_for_bit() -> None:
    logits_NC, label_N, chosen = random_logits(2)
    calibration = fit(logits_NC, label_N, chosen)
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
