"""The evaluation's arithmetic, on scores made by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluate import evaluation_table
from pipeline.evaluate import TaskScores, lexical_probability, summary
from pipeline.metrics import task_figures
from pipeline.schema import ROW_SCHEMA
from pipeline.tasks import Task


def task(name: str) -> Task:
    return Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")


def scores(name: str, num_rows: int, seed: int, model_noise: float) -> TaskScores:
    """The model sees the truth through some noise, the floor through more, the untrained model not at all."""
    random = np.random.default_rng(seed)
    positive_N = random.random(num_rows) < 0.4
    query_N = np.asarray([f"q{row // 3}" for row in range(num_rows)], dtype=object)

    def probability(noise: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(positive_N - 0.5 + random.normal(0, noise, num_rows))))

    by_system = {"model": probability(model_noise), "lexical": probability(2.0), "untrained": random.random(num_rows)}
    return TaskScores(task(name), query_N, positive_N, by_system)


def test_macro_is_the_mean_over_tasks_and_small_tasks_count_as_much_as_large() -> None:
    result = summary([scores("small", 60, 1, 0.3), scores("large", 600, 2, 0.3)], seed=0)
    for system in ("model", "lexical", "untrained"):
        mean = np.mean([figures[system]["pr_auc"] for figures in result["tasks"].values()])
        assert result["macro_pr_auc"][system]["value"] == pytest.approx(mean)


def test_a_better_model_has_its_interval_above_nothing_and_an_equal_one_has_not() -> None:
    better = summary([scores("a", 400, 3, 0.3), scores("b", 400, 4, 0.3)], seed=0)["model_minus_lexical_macro_pr_auc"]
    equal = summary([scores("a", 400, 3, 2.0), scores("b", 400, 4, 2.0)], seed=0)["model_minus_lexical_macro_pr_auc"]
    assert better["low"] > 0
    assert equal["low"] < 0 < equal["high"]


def test_the_same_scores_give_the_same_summary_as_json() -> None:
    given = [scores("a", 90, 5, 0.5)]
    assert json.dumps(summary(given, 1)) == json.dumps(summary(given, 1))
    assert "NaN" not in json.dumps(summary(given, 1))


def test_figures_of_a_perfect_score_are_perfect() -> None:
    positive_N = np.array([True, False, True, False] * 10)
    figures = task_figures(positive_N.astype(float), positive_N)
    assert (figures["roc_auc"], figures["pr_auc"], figures["f1"], figures["calibration_error"], figures["brier"]) == (1, 1, 1, 0, 0)


def test_the_table_names_every_task_and_system_once() -> None:
    text = evaluation_table(summary([scores("alpha", 60, 6, 0.3), scores("beta", 60, 7, 0.3)], 0))
    assert [text.count(word) for word in ("alpha", "beta", "lexical floor  ", "untrained")] == [1, 1, 3, 3]
    assert "model minus lexical floor" in text


def test_a_task_without_training_rows_has_a_floor_of_one_half() -> None:
    row = {name: None for name in ROW_SCHEMA.names} | {"row_id": "r", "query": "q", "ad_title": "a", "market": "us", "label": 1}
    assert lexical_probability(task("a"), None, pa.Table.from_pylist([row], schema=ROW_SCHEMA), 0).tolist() == [0.5]
