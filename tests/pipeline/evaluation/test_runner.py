"""The evaluation's arithmetic, on scores made by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from jobs.commands.evaluate import evaluation_table
from pipeline.config.tasks import Task
from pipeline.evaluation.runner import TaskScores, lexical_probability, summary
from pipeline.evaluation.task_metrics import Said, Truth
from pipeline.schema import ROW_SCHEMA


def task(name: str) -> Task:
    return Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")


def scores(name: str, num_rows: int, seed: int, model_noise: float) -> TaskScores:
    """The model sees the truth through some noise, the floor through more, the untrained model not at all."""
    random = np.random.default_rng(seed)
    label_N = (random.random(num_rows) < 0.4).astype(int)
    query_N = np.asarray([f"q{row // 3}" for row in range(num_rows)], dtype=object)

    def probability(noise: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(label_N - 0.5 + random.normal(0, noise, num_rows))))

    def said(probability_N: np.ndarray) -> Said:
        return Said(
            probability_N,
            np.stack([1 - probability_N, probability_N], 1),
            np.where(probability_N > 0.7, "relevant", "abstain"),
        )

    market_N = np.where(np.arange(num_rows) % 3 == 0, "us", "es").astype(object)
    by_system = {
        "model": said(probability(model_noise)),
        "lexical": Said(probability(2.0)),
        "untrained": said(random.random(num_rows)),
    }
    return TaskScores(Truth(task(name), query_N, label_N, {"market": market_N}), by_system)


def test_macro_is_the_mean_over_tasks_and_small_tasks_count_as_much_as_large() -> None:
    result = summary([scores("small", 60, 1, 0.3), scores("large", 600, 2, 0.3)], seed=0)
    for system in ("model", "lexical", "untrained"):
        mean = np.mean([figures[system]["pr_auc"]["value"] for figures in result["tasks"].values()])
        assert result["macro_pr_auc"][system]["value"] == pytest.approx(mean)


def test_a_better_model_has_its_interval_above_nothing_and_an_equal_one_has_not() -> None:
    better = summary([scores("a", 400, 3, 0.3), scores("b", 400, 4, 0.3)], seed=0)[
        "model_minus_lexical_macro_pr_auc"
    ]
    equal = summary([scores("a", 400, 3, 2.0), scores("b", 400, 4, 2.0)], seed=0)[
        "model_minus_lexical_macro_pr_auc"
    ]
    assert better["low"] > 0
    assert equal["low"] < 0 < equal["high"]


def test_the_same_scores_give_the_same_summary_as_json() -> None:
    given = [scores("a", 90, 5, 0.5)]
    assert json.dumps(summary(given, 1)) == json.dumps(summary(given, 1))
    assert "NaN" not in json.dumps(summary(given, 1))


def test_every_figure_has_an_interval_and_every_slice_its_rows() -> None:
    found = summary([scores("a", 120, 5, 0.5)], 1)["tasks"]["a"]
    assert (found["rows"], found["queries"]) == (120, 40)
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
    assert names <= found["model"].keys()
    for figure in found["model"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert [(part["by"], part["slice"], part["rows"]) for part in found["slices"]] == [
        ("market", "es", 80),
        ("market", "us", 40),
    ]
    assert all(part["figures"]["pr_auc"]["value"] for part in found["slices"])


def test_the_worst_task_is_named() -> None:
    assert summary([scores("fine", 200, 1, 0.3), scores("poor", 200, 2, 3.0)], 0)["worst_task"] == "poor"


def test_the_table_names_every_task_and_system_once() -> None:
    text = evaluation_table(summary([scores("alpha", 60, 6, 0.3), scores("beta", 60, 7, 0.3)], 0))
    assert [text.count(word) for word in ("alpha", "beta", "lexical floor  ", "untrained")] == [1, 1, 3, 3]
    assert "model minus lexical floor" in text


def test_a_task_without_training_rows_has_a_floor_of_one_half() -> None:
    row = {name: None for name in ROW_SCHEMA.names} | {
        "row_id": "r",
        "query": "q",
        "ad_title": "a",
        "market": "us",
        "label": 1,
    }
    assert lexical_probability(
        task("a"), None, pa.Table.from_pylist([row], schema=ROW_SCHEMA), 0
    ).tolist() == [0.5]
