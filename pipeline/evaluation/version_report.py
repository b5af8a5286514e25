"""Test metrics of a version for its report, beside another version's and the lexical floor's.

Shape legend: D bootstrap draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.evaluation.bootstrap import interval
from pipeline.evaluation.comparison import compare_task, is_shared_task, labeled_rows
from pipeline.evaluation.multitask_gain import rows_digest
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.evaluation.results import (
    Comparison,
    Evaluation,
    Interval,
    Metrics,
    SliceResult,
    TaskComparison,
)
from pipeline.evaluation.task_metrics import (
    LabeledRows,
    Predictions,
    metrics_with_intervals,
    slice_metrics,
)
from pipeline.storage.filesystem import read_json_as


@dataclass(frozen=True)
class TaskReport:
    """One task's test rows with the predictions and metrics of a version, and those of another version."""

    table: pa.Table
    rows: LabeledRows
    predictions: Predictions
    metrics: Metrics
    slices: tuple[SliceResult, ...]
    other_predictions: Predictions | None = None
    comparison: TaskComparison | None = None  # with the other version


@dataclass(frozen=True)
class VersionMetrics:
    """Reports of all tasks that have test rows, and macro PR-AUC."""

    tasks: tuple[TaskReport, ...]
    not_measured: tuple[str, ...]  # tasks of the version without test rows of both classes
    macro_pr_auc: Interval
    macro_difference: Interval | None  # macro PR-AUC minus the other version's, over the tasks of both
    not_compared: tuple[str, ...] = ()  # tasks of the other version that were not compared

    def comparison(self, speed_ratio: float) -> Comparison:
        """Return the comparison with the other version, of which at least one task was compared."""
        compared = {task.rows.task.name: task.comparison for task in self.tasks if task.comparison}
        assert self.macro_difference is not None
        return Comparison(compared, self.not_compared, self.macro_difference, speed_ratio)


@dataclass(frozen=True)
class LexicalFloor:
    """Metrics of the lexical baseline on the rows of a report."""

    tasks: Mapping[str, Metrics]
    macro_pr_auc: Interval | None  # None unless it is of the same tasks as the report's


def measure_version(
    version: PredictedVersion,
    other: PredictedVersion | None,
    tables: Mapping[str, pa.Table],
    seed: int,
) -> VersionMetrics:
    """Measure a version on test rows.

    Args:
        version: The version, with its logits of all these rows.
        other: The version to compare with; None for no comparison.
        tables: Labeled contract rows of both classes, by task.
        seed: Seed of the bootstrap.
    """
    reports, pr_auc_draws = [], []
    for position, task in enumerate(task for task in version.tasks if task.name in tables):
        comparable = other if other is not None and is_shared_task(task, other.tasks) else None
        report, pr_auc_D = _measure_task(task, tables[task.name], (version, comparable), seed + position)
        reports.append(report)
        pr_auc_draws.append(pr_auc_D)
    compared = {report.rows.task.name: report.comparison for report in reports if report.comparison}
    macro_difference = None
    if compared:
        macro_difference = interval(
            float(np.mean([task.difference["pr_auc"].value for task in compared.values()])),
            np.mean([task.difference_D for task in compared.values()], axis=0),
        )
    return VersionMetrics(
        tuple(reports),
        tuple(task.name for task in version.tasks if task.name not in tables),
        interval(
            float(np.mean([report.metrics["pr_auc"].value for report in reports])),
            np.mean(pr_auc_draws, axis=0),
        ),
        macro_difference,
        tuple(task.name for task in other.tasks if task.name not in compared) if other else (),
    )


def read_lexical_floor(path: Path, tables: Mapping[str, pa.Table]) -> LexicalFloor:
    """Return the lexical baseline's metrics that an evaluation.json recorded of these very rows.

    Args:
        path: The file, which may be absent.
        tables: Test rows of the report, by task.
    """
    if not path.is_file():
        return LexicalFloor({}, None)
    summary = read_json_as(path, Evaluation.from_json).summary
    tasks = {
        name: task.systems["lexical"]
        for name, task in summary.tasks.items()
        if name in tables and rows_digest(tables[name]) == task.rows_digest
    }
    is_whole = tasks.keys() == tables.keys() == summary.tasks.keys()
    return LexicalFloor(tasks, summary.macro_pr_auc["lexical"] if is_whole else None)


def _measure_task(
    task: Task,
    table: pa.Table,
    versions: tuple[PredictedVersion, PredictedVersion | None],
    seed: int,
) -> tuple[TaskReport, np.ndarray]:
    """Measure one task, also with the other version if there is one; return its draws of PR-AUC (D,) too."""
    version, other = versions
    rows = labeled_rows(task, table)
    predictions = version.predict(task.name, table)
    metrics, draws = metrics_with_intervals(rows, predictions, seed)
    report = TaskReport(table, rows, predictions, metrics, slice_metrics(rows, predictions, seed))
    if other is not None:
        other_predictions = other.predict(task.name, table)
        comparison = compare_task(rows, predictions, other_predictions, seed)
        report = replace(report, other_predictions=other_predictions, comparison=comparison)
    return report, draws["pr_auc"]
