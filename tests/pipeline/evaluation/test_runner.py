"""Summary of an evaluation, from generated predictions."""

import json

import numpy as np
import pytest

from jobs.commands.evaluate import evaluation_table
from pipeline.config.tasks import Task
from pipeline.evaluation.results import Evaluation, FloorRows, MetricsSummary
from pipeline.evaluation.runner import TaskPredictions, summarize
from pipeline.evaluation.task_metrics import LabeledRows, Predictions


def task(name: str) -> Task:
    return Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")


def predictions(name: str, num_rows: int, seed: int, model_noise: float) -> TaskPredictions:
    """The model sees the labels with some noise, the baseline with more, the untrained model not at all."""
    random = np.random.default_rng(seed)
    label_N = (random.random(num_rows) < 0.4).astype(int)
    query_N = np.asarray([f"q{row // 3}" for row in range(num_rows)], dtype=object)

    def probability(noise: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(label_N - 0.5 + random.normal(0, noise, num_rows))))

    def with_decisions(probability_N: np.ndarray) -> Predictions:
        return Predictions(
            probability_N,
            np.stack([1 - probability_N, probability_N], 1),
            np.where(probability_N > 0.7, "relevant", "abstain"),
        )

    market_N = np.where(np.arange(num_rows) % 3 == 0, "us", "es").astype(object)
    by_system = {
        "model": with_decisions(probability(model_noise)),
        "lexical": Predictions(probability(2.0)),
        "untrained": with_decisions(random.random(num_rows)),
    }
    return TaskPredictions(LabeledRows(task(name), query_N, label_N, {"market": market_N}), by_system)


def test_macro_average_weighs_tasks_equally() -> None:
    result = summarize([predictions("small", 60, 1, 0.3), predictions("large", 600, 2, 0.3)], seed=0)
    for system in ("model", "lexical", "untrained"):
        mean = np.mean([task.systems[system]["pr_auc"].value for task in result.tasks.values()])
        assert result.macro_pr_auc[system].value == pytest.approx(mean)


def test_interval_of_the_lead_is_positive_for_a_better_model_only() -> None:
    better = summarize([predictions("a", 400, 3, 0.3), predictions("b", 400, 4, 0.3)], seed=0)
    equal = summarize([predictions("a", 400, 3, 2.0), predictions("b", 400, 4, 2.0)], seed=0)
    assert better.model_minus_lexical_macro_pr_auc.low > 0
    assert equal.model_minus_lexical_macro_pr_auc.low < 0 < equal.model_minus_lexical_macro_pr_auc.high


def test_equal_predictions_give_equal_json() -> None:
    given = [predictions("a", 90, 5, 0.5)]
    text = json.dumps(summarize(given, 1).to_json())
    assert text == json.dumps(summarize(given, 1).to_json()) and "NaN" not in text
    assert json.dumps(MetricsSummary.from_json(json.loads(text)).to_json()) == text


def test_every_metric_has_an_interval_and_every_slice_its_rows() -> None:
    found = summarize([predictions("a", 120, 5, 0.5)], 1).tasks["a"]
    assert (found.rows, found.queries) == (120, 40)
    names = {
        "roc_auc",
        "pr_auc",
        "defect_pr_auc",
        "macro_f1",
        "f1_bad",
        "f1_good",
        "quadratic_kappa",
        "calibration_error",
        "brier",
        "log_loss",
        "defect_rate",
        "decided_share",
        "ndcg_at_10",
        "precision_at_recall_0.8",
    }
    assert names <= found.systems["model"].keys()
    for metric in found.systems["model"].values():
        assert metric.low <= metric.value <= metric.high
    assert [(part.by, part.name, part.rows) for part in found.slices] == [
        ("market", "es", 80),
        ("market", "us", 40),
    ]
    assert all(part.metrics and part.metrics["pr_auc"].value for part in found.slices)


def test_worst_task_has_the_lowest_pr_auc() -> None:
    assert (
        summarize([predictions("fine", 200, 1, 0.3), predictions("poor", 200, 2, 3.0)], 0).worst_task
        == "poor"
    )


def test_table_has_every_task_and_system_once() -> None:
    summary = summarize([predictions("alpha", 60, 6, 0.3), predictions("beta", 60, 7, 0.3)], 0)
    text = "\n".join(evaluation_table(Evaluation("s", "d", summary, ())))
    assert [text.count(word) for word in ("alpha", "beta", "lexical floor  ", "untrained")] == [1, 1, 3, 3]
    assert "model minus lexical floor" in text


def test_table_says_which_floors_left_rows_out() -> None:
    summary = summarize([predictions("alpha", 60, 6, 0.3)], 0)
    floor_rows = {"alpha": FloorRows(200_000, 1_234_567)}
    text = "\n".join(evaluation_table(Evaluation("s", "d", summary, (), floor_rows=floor_rows)))
    assert "lexical floor of alpha: fitted on 200,000 of 1,234,567 train rows" in text
