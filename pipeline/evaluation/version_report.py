"""Test metrics of a version for its report, beside another version's where there is one.

Shape legend: D bootstrap draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.evaluation.bootstrap import interval
from pipeline.evaluation.comparison import is_shared_task, labeled_rows, metric_differences, predict
from pipeline.evaluation.html_report import TaskReport
from pipeline.evaluation.results import Interval
from pipeline.evaluation.task_metrics import metrics_with_intervals, slice_metrics
from pipeline.inference.predictor import Predictor


@dataclass(frozen=True)
class VersionMetrics:
    """Reports of all tasks that have test rows, and macro PR-AUC."""

    tasks: tuple[TaskReport, ...]
    macro_pr_auc: Interval
    macro_difference: Interval | None  # macro PR-AUC minus the other version's, over the tasks of both


@dataclass(frozen=True)
class _TaskMetrics:
    """One task's report, and the PR-AUC values and draws that the macro intervals need."""

    report: TaskReport
    pr_auc: float
    pr_auc_D: np.ndarray
    difference: tuple[float, np.ndarray] | None = None  # from the other version: value and draws (D,)


def measure_version(
    predictor: Predictor,
    other: Predictor | None,
    tables: Mapping[str, pa.Table],
    batch_tokens: int,
    seed: int,
) -> VersionMetrics:
    """Measure a version on test rows.

    Args:
        predictor: The version.
        other: The version to compare with; None for no comparison.
        tables: Labeled contract rows of both classes, by task.
        batch_tokens: Largest number of tokens of a forward pass, padding included.
        seed: Seed of the bootstrap.
    """
    tasks = [task for task in predictor.tasks if task.name in tables]
    task_metrics = []
    for position, task in enumerate(tasks):
        comparable = other if other is not None and is_shared_task(task, other.tasks) else None
        table = tables[task.name]
        task_metrics.append(
            _measure_task(task, table, (predictor, comparable), batch_tokens, seed + position)
        )
    macro_pr_auc = interval(
        float(np.mean([task.pr_auc for task in task_metrics])),
        np.mean([task.pr_auc_D for task in task_metrics], axis=0),
    )
    macro_difference = None
    differences = [task.difference for task in task_metrics if task.difference is not None]
    if differences:
        macro_difference = interval(
            float(np.mean([value for value, _ in differences])),
            np.mean([draw_D for _, draw_D in differences], axis=0),
        )
    return VersionMetrics(tuple(task.report for task in task_metrics), macro_pr_auc, macro_difference)


def _measure_task(
    task: Task,
    table: pa.Table,
    predictors: tuple[Predictor, Predictor | None],
    batch_tokens: int,
    seed: int,
) -> _TaskMetrics:
    """Measure one task with a version and, if there is one, with another."""
    predictor, other = predictors
    rows = labeled_rows(task, table)
    predictions = predict(predictor, table, task.name, batch_tokens)
    metrics, draws = metrics_with_intervals(rows, predictions, seed)
    slices = slice_metrics(rows, predictions, seed)
    pr_auc, pr_auc_D = metrics["pr_auc"].value, draws["pr_auc"]
    if other is None:
        return _TaskMetrics(TaskReport(table, rows, predictions, metrics, slices), pr_auc, pr_auc_D)
    other_predictions = predict(other, table, task.name, batch_tokens)
    other_metrics, other_draws = metrics_with_intervals(rows, other_predictions, seed)
    difference = metric_differences(metrics, draws, other_metrics, other_draws)
    report = TaskReport(
        table, rows, predictions, metrics, slices, other_predictions, other_metrics, difference
    )
    pr_auc_difference = (difference["pr_auc"].value, pr_auc_D - other_draws["pr_auc"])
    return _TaskMetrics(report, pr_auc, pr_auc_D, pr_auc_difference)
