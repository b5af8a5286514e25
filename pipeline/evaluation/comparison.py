"""Two versions on the same rows: paired differences of metrics.

Shape legend: D bootstrap draws.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.errors import ConfigError
from pipeline.evaluation.bootstrap import ClusterBootstrap, interval
from pipeline.evaluation.metrics import ranking_metrics
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.evaluation.results import Comparison, Interval, SliceDifference, TaskComparison
from pipeline.evaluation.slices import slice_names
from pipeline.evaluation.task_metrics import (
    MIN_SLICE_ROWS,
    LabeledRows,
    Predictions,
    label_column,
    metrics_with_intervals,
    query_column,
)

NO_TASK_IN_COMMON = (
    "the versions have no task in common with both relevant and irrelevant test rows; compare versions of "
    "the same tasks"
)


def compare_versions(
    challenger: PredictedVersion,
    champion: PredictedVersion,
    tables: Mapping[str, pa.Table],
    speed_ratio: float,
    seed: int,
) -> Comparison:
    """Compare two versions, each with its own templates and calibration.

    Args:
        challenger: Version whose gain is measured.
        champion: Version that it is compared with.
        tables: Labeled contract rows by task, from `shared_tables`.
        speed_ratio: The challenger's rows per second divided by the champion's.
        seed: Seed of the bootstrap.
    """
    comparisons = {}
    for position, task in enumerate(task for task in challenger.tasks if task.name in tables):
        table = tables[task.name]
        predicted = [version.predict(task.name, table) for version in (challenger, champion)]
        rows = labeled_rows(task, table)
        comparisons[task.name] = compare_task(rows, predicted[0], predicted[1], seed + position)
    macro_value = float(np.mean([task.difference["pr_auc"].value for task in comparisons.values()]))
    macro_D = np.mean([task.difference_D for task in comparisons.values()], axis=0)
    return Comparison(
        comparisons,
        tuple(task.name for task in champion.tasks if task.name not in comparisons),
        interval(macro_value, macro_D),
        speed_ratio,
    )


def shared_tables(
    tasks: Sequence[Task], others: Sequence[Task], tables: Mapping[str, pa.Table]
) -> dict[str, pa.Table]:
    """Return the rows of the tasks that two versions share.

    Args:
        tasks: Tasks of a version.
        others: Tasks of the other version.
        tables: Labeled contract rows by task.

    Raises:
        ConfigError: The versions have no task in common, or one with other labels.
    """
    shared = {
        task.name: tables[task.name] for task in tasks if task.name in tables and is_shared_task(task, others)
    }
    if not shared:
        raise ConfigError(NO_TASK_IN_COMMON)
    return shared


def is_shared_task(task: Task, others: Sequence[Task], where: str = "the two versions") -> bool:
    """Return True if `others` has a task of this name.

    Raises:
        ConfigError: It has the task with other labels; the message says that they differ in `where`.
    """
    known = next((other for other in others if other.name == task.name), None)
    if known is None:
        return False
    if (known.labels, known.relevant_from) != (task.labels, task.relevant_from):
        raise ConfigError(f"task {task.name} has different labels in {where}; they cannot be compared")
    return True


def labeled_rows(task: Task, table: pa.Table) -> LabeledRows:
    """Return queries, labels and slices of contract rows."""
    return LabeledRows(
        task,
        query_column(table),
        label_column(table),
        slice_names(table, task.labels),
    )


def compare_task(
    rows: LabeledRows, challenger: Predictions, champion: Predictions, seed: int
) -> TaskComparison:
    """Return the metrics of both versions and their differences, draw by draw on the same queries."""
    challenger_metrics, challenger_draws = metrics_with_intervals(rows, challenger, seed)
    champion_metrics, champion_draws = metrics_with_intervals(rows, champion, seed)
    return TaskComparison(
        challenger_metrics,
        champion_metrics,
        metric_differences(challenger_metrics, challenger_draws, champion_metrics, champion_draws),
        challenger_draws["pr_auc"] - champion_draws["pr_auc"],
        _slice_differences(rows, challenger, champion, seed),
    )


def metric_differences(
    challenger: Mapping[str, Interval],
    challenger_draws: Mapping[str, np.ndarray],
    champion: Mapping[str, Interval],
    champion_draws: Mapping[str, np.ndarray],
) -> dict[str, Interval]:
    """Return challenger minus champion of every metric that both have; draws (D,) are of the same queries."""
    return {
        name: interval(
            challenger[name].value - champion[name].value, challenger_draws[name] - champion_draws[name]
        )
        for name in challenger
        if name in champion
    }


def _slice_differences(
    rows: LabeledRows, challenger: Predictions, champion: Predictions, seed: int
) -> tuple[SliceDifference, ...]:
    """Return PR-AUC of challenger minus champion on each slice with enough rows and both classes."""
    differences = []
    for by, name_N in rows.slices.items():
        for name in sorted(set(name_N.tolist())):
            chosen_N = name_N == name
            part, num_rows = rows.select(chosen_N), int(chosen_N.sum())
            has_one_class = part.is_relevant_N.all() or not part.is_relevant_N.any()
            if num_rows < MIN_SLICE_ROWS or has_one_class:
                continue
            systems = [version.select(chosen_N).probability_N for version in (challenger, champion)]
            difference = _pr_auc_difference(part, systems, seed)
            differences.append(SliceDifference(by, name, num_rows, difference))
    return tuple(differences)


def _pr_auc_difference(rows: LabeledRows, systems: Sequence[np.ndarray], seed: int) -> Interval:
    """Return PR-AUC of the first system's probabilities (N,) minus that of the second's."""

    def difference(weight_DN: np.ndarray) -> dict[str, np.ndarray]:
        first_D, second_D = (
            ranking_metrics(probability_N, rows.is_relevant_N, weight_DN)["pr_auc"]
            for probability_N in systems
        )
        return {"pr_auc": first_D - second_D}

    value = difference(np.ones((1, len(rows.label_N))))["pr_auc"][0]
    return interval(float(value), ClusterBootstrap(rows.query_N, seed).draws(difference)["pr_auc"])
