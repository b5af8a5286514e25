"""The gain over runs of one task: by the same rows, and only where such runs exist."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.evaluation.multitask_gain import gain_over_single_tasks, rows_digest


def figures(pr_auc: float, digest: str = "same") -> dict[str, Any]:
    return {"rows_digest": digest, "model": {"pr_auc": {"value": pr_auc}}}


def write(folder: Path, tasks: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"tasks": tasks}))


def test_the_mean_is_over_tasks_that_were_trained_alone_and_measured_on_the_same_rows(tmp_path: Path) -> None:
    ours = {"a": figures(0.6), "b": figures(0.9), "c": figures(0.5)}
    write(tmp_path / "ours", ours)
    assert gain_over_single_tasks(tmp_path, "ours", ours) is None
    write(tmp_path / "a-alone", {"a": figures(0.5)})
    write(tmp_path / "b-alone", {"b": figures(1.0)})
    write(tmp_path / "c-of-other-rows", {"c": figures(0.1, "other")})
    write(tmp_path / "two", {"a": figures(0.1), "b": figures(0.1)})
    write(tmp_path / "earlier-release", {"a": {"model": {"pr_auc": 0.7}}})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "evaluation.json").write_text('{"tasks": {"a"')
    found = gain_over_single_tasks(tmp_path, "ours", ours)
    assert found == {
        "runs": {"a": "a-alone", "b": "b-alone"},
        "mean_relative_gain": pytest.approx((0.1 / 0.5 - 0.1 / 1.0) / 2),
    }


def test_rows_are_the_same_in_whatever_order() -> None:
    assert rows_digest(pa.table({"row_id": ["x", "y"]})) == rows_digest(pa.table({"row_id": ["y", "x"]}))
    assert rows_digest(pa.table({"row_id": ["x", "y"]})) != rows_digest(pa.table({"row_id": ["x", "z"]}))
