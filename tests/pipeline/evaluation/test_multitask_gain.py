"""Gain over runs of one task: on equal test rows, and only where such runs exist."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.evaluation.multitask_gain import gain_over_single_tasks, rows_digest
from pipeline.evaluation.results import Interval, SingleTaskGain, TaskEvaluation


def evaluation(pr_auc: float, digest: str = "same") -> TaskEvaluation:
    metrics = {"pr_auc": Interval(pr_auc, pr_auc, pr_auc)}
    systems = {"model": metrics, "lexical": metrics, "untrained": metrics}
    return TaskEvaluation(1, 1, 1, systems, metrics["pr_auc"], (), digest)


def write(folder: Path, tasks: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"tasks": tasks}))


def test_mean_is_over_tasks_evaluated_alone_on_equal_rows(tmp_path: Path) -> None:
    own = {"a": evaluation(0.6), "b": evaluation(0.9), "c": evaluation(0.5)}
    write(tmp_path / "own", {name: task.to_json() for name, task in own.items()})
    assert gain_over_single_tasks(tmp_path, "own", own) is None
    write(tmp_path / "a-alone", {"a": evaluation(0.5).to_json()})
    write(tmp_path / "b-alone", {"b": evaluation(1.0).to_json()})
    write(tmp_path / "c-of-other-rows", {"c": evaluation(0.1, "other").to_json()})
    write(tmp_path / "two", {"a": evaluation(0.1).to_json(), "b": evaluation(0.1).to_json()})
    write(tmp_path / "other-format", {"a": {"model": {"pr_auc": 0.7}}})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "evaluation.json").write_text('{"tasks": {"a"')
    expected = pytest.approx((0.1 / 0.5 - 0.1 / 1.0) / 2)
    assert gain_over_single_tasks(tmp_path, "own", own) == SingleTaskGain(
        {"a": "a-alone", "b": "b-alone"}, expected
    )


def test_digest_does_not_depend_on_row_order() -> None:
    assert rows_digest(pa.table({"row_id": ["x", "y"]})) == rows_digest(pa.table({"row_id": ["y", "x"]}))
    assert rows_digest(pa.table({"row_id": ["x", "y"]})) != rows_digest(pa.table({"row_id": ["x", "z"]}))
