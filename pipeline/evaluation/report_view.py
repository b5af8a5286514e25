"""Content of the HTML report: what was measured, and the parts of it that the page shows.

Sizes are bounded, whatever the number of tasks: MAX_ERRORS rows and MAX_SLICES slices on the page.

Shape legend: N rows, C labels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.curves import confusion, curve_charts, most_confident_errors
from pipeline.evaluation.results import GateOutcome, Interval, Metrics, SliceResult
from pipeline.evaluation.suspected_labels import suspected_labels
from pipeline.evaluation.svg_charts import Line, line_chart
from pipeline.evaluation.version_report import LexicalFloor, TaskReport, VersionMetrics

MAX_ERRORS, MAX_TASK_ERRORS = 600, 50

MAX_SLICES, MAX_TASK_SLICES = 800, 60  # measured ones

NUM_WEAK_POINTS = 3

KEY_METRICS = ("pr_auc", "defect_pr_auc", "macro_f1", "calibration_error")  # of the overview

METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "pr_auc": "PR-AUC",
    "defect_pr_auc": "PR-AUC of defects",
    "brier": "Brier score",
    "macro_f1": "macro F1",
    "ndcg_at_10": "nDCG@10",
}

LOWER_IS_BETTER = ("calibration_error", "brier", "log_loss", "defect_rate")

FILTER_DIMENSIONS = ("market", "label")  # slices that the page's filters select

NUM_SHADES = 10  # of cells of a confusion table, styled in report.css


@dataclass(frozen=True)
class DriftFeature:
    """Drift of one feature of the rows."""

    task: str | None  # None: all tasks together
    feature: str
    verdict: str
    psi: float | None
    changes: str  # the largest ones, in words

    @property
    def has_moved(self) -> bool:
        """True if the feature needs a look."""
        return self.verdict in ("drift", "look", "empty")


@dataclass(frozen=True)
class VersionReport:
    """Content of the page."""

    model: str
    version: str
    standing: str  # such as champion or challenger
    against: str | None  # version that it is compared with
    against_standing: str
    measured: VersionMetrics
    floor: LexicalFloor
    verdict: GateOutcome | None  # the gate's last one on the version
    next_command: str  # towards a promotion; empty if there is none
    speed_ratio: float | None  # rows per second over those of `against`
    cost: Mapping[str, str]  # recorded facts, by name
    facts: Mapping[str, str]  # digests and ids, by name
    training: Mapping[str, Sequence[tuple[float, float]]]  # (step, value) by metric
    drift: Sequence[DriftFeature] | None  # None without a profile of the training rows
    suspected_labels: str  # name of the csv file beside the page


@dataclass(frozen=True)
class Axis:
    """Range of values that bars share."""

    low: float
    high: float


@dataclass(frozen=True)
class MetricRow:
    """One metric of the version, the other version and the lexical floor."""

    name: str
    value: Interval
    other: Interval | None
    difference: Interval | None
    floor: Interval | None
    change: str  # better, worse, or empty if the interval of the difference includes 0


@dataclass(frozen=True)
class SliceRow:
    """One measured slice."""

    task: str
    result: SliceResult
    difference: Interval | None  # of PR-AUC from the other version
    change: str
    filters: Mapping[str, str]  # choice by filter


@dataclass(frozen=True)
class ConfusionCell:
    """Rows of one true and one predicted label."""

    count: int
    shade: int  # share of its row, of NUM_SHADES


@dataclass(frozen=True)
class ErrorRow:
    """One row whose probability is on the wrong side of one half."""

    market: str
    label: str
    probability: float
    query: str
    ad_title: str
    ad_description: str
    row_id: str


@dataclass(frozen=True)
class TaskView:
    """One task as the page shows it."""

    name: str
    num_rows: int
    num_relevant: int
    num_queries: int
    metrics: Sequence[MetricRow]
    key_metrics: Mapping[str, MetricRow]  # of KEY_METRICS, those that it has
    charts: Mapping[str, str]  # SVG by name
    labels: Sequence[str]
    confusion: Sequence[Sequence[ConfusionCell]]  # by true label
    slices: Sequence[SliceRow]
    num_slices: int  # measured ones, shown or not
    num_small_slices: int
    errors: Sequence[ErrorRow]
    num_errors: int
    num_suspected: int
    drift: Sequence[DriftFeature]

    @property
    def change(self) -> str:
        """Change of PR-AUC from the other version's: better, worse or empty."""
        return self.key_metrics["pr_auc"].change


@dataclass(frozen=True)
class WeakPoint:
    """A task or slice that is worse than the other version, or has the lowest PR-AUC without one."""

    task: str
    slice: str  # empty: all rows of the task
    metric: Interval


@dataclass(frozen=True)
class ReportView:
    """The page's parts that are computed from a report."""

    tasks: Sequence[TaskView]
    axes: Mapping[str, Axis]  # by metric of KEY_METRICS
    change: str  # of macro PR-AUC
    num_changes: Mapping[str, int]  # compared tasks that are better, worse and neither
    weak_points: Sequence[WeakPoint]  # the worst NUM_WEAK_POINTS
    num_weak_tasks: int
    num_weak_slices: int
    filters: Mapping[str, Sequence[str]]  # choices by name
    training_charts: Mapping[str, str]


def report_view(report: VersionReport) -> ReportView:
    """Return what the page shows."""
    tasks = [_task_view(task, report) for task in report.measured.tasks]
    filters = {
        name: sorted(_filter_choices(name, tasks)) for name in FILTER_DIMENSIONS
    }  # of rows and slices that are shown
    weak_tasks = [
        WeakPoint(task.name, "", task.key_metrics["pr_auc"].difference)
        for task in tasks
        if task.change == "worse" and task.key_metrics["pr_auc"].difference is not None
    ]
    slices = [row for task in tasks for row in task.slices]
    weak_slices = _weak_slices(slices, report.measured.macro_difference is not None)
    weak_points = sorted(weak_tasks, key=_weakness) + sorted(weak_slices, key=_weakness)
    changes = [task.change for task in tasks if task.key_metrics["pr_auc"].difference is not None]
    return ReportView(
        tasks=tasks,
        axes={name: _axis(name, tasks) for name in KEY_METRICS},
        change=describe_change("pr_auc", report.measured.macro_difference),
        num_changes={change: changes.count(change) for change in ("better", "worse", "")},
        weak_points=weak_points[:NUM_WEAK_POINTS],
        num_weak_tasks=len(weak_tasks),
        num_weak_slices=len(weak_slices),
        filters=filters,
        training_charts=_training_charts(report.training),
    )


def describe_change(metric: str, difference: Interval | None) -> str:
    """Return better or worse; empty if the interval of a difference includes 0 or there is none."""
    if difference is None:
        return ""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    gain_low, gain_high = sorted((sign * difference.low, sign * difference.high))
    return "better" if gain_low > 0 else "worse" if gain_high < 0 else ""


def _task_view(task: TaskReport, report: VersionReport) -> TaskView:
    """Return the metrics, charts, slices and errors of one task."""
    name, num_tasks = task.rows.task.name, len(report.measured.tasks)
    floor = report.floor.tasks.get(name)
    lines = [(f"version {report.version}", task.predictions.probability_N)]
    if task.other_predictions is not None:
        lines.append((f"version {report.against}", task.other_predictions.probability_N))
    metrics = {metric: _metric_row(task, metric, floor) for metric in task.metrics}
    slices = _slice_rows(task)
    is_wrong_N = (task.predictions.probability_N >= 0.5) != task.rows.is_relevant_N
    return TaskView(
        name=name,
        num_rows=len(task.rows.label_N),
        num_relevant=int(task.rows.is_relevant_N.sum()),
        num_queries=len(set(task.rows.query_N)),
        metrics=list(metrics.values()),
        key_metrics={metric: metrics[metric] for metric in KEY_METRICS if metric in metrics},
        charts=curve_charts(lines, task.rows.is_relevant_N),
        labels=task.rows.task.labels,
        confusion=_confusion_rows(task),
        slices=slices[: _share(MAX_SLICES, num_tasks, MAX_TASK_SLICES)],
        num_slices=len(slices),
        num_small_slices=len(task.slices) - len(slices),
        errors=_error_rows(task, _share(MAX_ERRORS, num_tasks, MAX_TASK_ERRORS)),
        num_errors=int(is_wrong_N.sum()),
        num_suspected=len(suspected_labels(task)),
        drift=[feature for feature in report.drift or () if feature.task == name],
    )


def _share(budget: int, num_tasks: int, most: int) -> int:
    """Return a task's share of a budget of the page."""
    return max(1, min(most, budget // max(1, num_tasks)))


def _metric_row(task: TaskReport, name: str, floor: Metrics | None) -> MetricRow:
    """Return a metric of all systems and whether the difference of the versions is certain."""
    shown = METRIC_NAMES.get(name, name.replace("_", " "))
    if name.startswith("f1_"):
        shown = f"F1 of {name.removeprefix('f1_')}"
    floor_metric = floor.get(name) if floor else None
    if task.comparison is None or name not in task.comparison.difference:
        return MetricRow(shown, task.metrics[name], None, None, floor_metric, "")
    other, difference = task.comparison.champion[name], task.comparison.difference[name]
    change = describe_change(name, difference)
    return MetricRow(shown, task.metrics[name], other, difference, floor_metric, change)


def _confusion_rows(task: TaskReport) -> list[list[ConfusionCell]]:
    """Return counts by true and predicted label; none for a system without label probabilities."""
    num_labels, label_probability_NC = len(task.rows.task.labels), task.predictions.label_probability_NC
    if label_probability_NC is None:
        return []
    count_CC = confusion(task.rows.label_N, label_probability_NC.argmax(1), num_labels)
    return [
        [ConfusionCell(int(n), round(NUM_SHADES * int(n) / max(1, int(count_C.sum())))) for n in count_C]
        for count_C in count_CC
    ]


def _slice_rows(task: TaskReport) -> list[SliceRow]:
    """Return the measured slices by PR-AUC from the lowest; those of one class come last."""
    name = task.rows.task.name
    differences = {}
    if task.comparison is not None:
        differences = {(part.by, part.name): part.difference for part in task.comparison.slices}
    rows = []
    for part in task.slices:
        if part.metrics is not None:
            difference = differences.get((part.by, part.name))
            filters = {part.by: part.name} if part.by in FILTER_DIMENSIONS else {}
            rows.append(SliceRow(name, part, difference, describe_change("pr_auc", difference), filters))
    return sorted(rows, key=_slice_order)


def _slice_order(row: SliceRow) -> tuple[bool, float, float]:
    """Sort key: slices of one class last, then by PR-AUC, then by log loss from the highest."""
    metrics: Any = row.result.metrics
    pr_auc = metrics["pr_auc"].value
    return row.result.has_one_class, 0.0 if math.isnan(pr_auc) else pr_auc, -metrics["log_loss"].value


def _weak_slices(slices: Iterable[SliceRow], is_compared: bool) -> list[WeakPoint]:
    """Return the slices that are worse than the other version's; without one, those of both classes."""
    points = []
    for row in slices:
        metric = row.difference if is_compared else row.result.metrics and row.result.metrics["pr_auc"]
        is_weak = row.change == "worse" if is_compared else not row.result.has_one_class
        if metric and is_weak:
            points.append(WeakPoint(row.task, f"{row.result.by.replace('_', ' ')} {row.result.name}", metric))
    return points


def _weakness(point: WeakPoint) -> float:
    return point.metric.value


def _error_rows(task: TaskReport, count: int) -> list[ErrorRow]:
    """Return the most confident errors with their texts."""
    probability_N = task.predictions.probability_N
    rows = []
    for number in most_confident_errors(probability_N, task.rows.is_relevant_N, count).tolist():
        texts = {
            name: task.table.column(name)[number].as_py() or ""
            for name in ("market", "query", "ad_title", "ad_description", "row_id")
        }
        label = task.rows.task.labels[task.rows.label_N[number]]
        rows.append(ErrorRow(label=label, probability=float(probability_N[number]), **texts))
    return rows


def _filter_choices(name: str, tasks: Sequence[TaskView]) -> set[str]:
    """Return the markets or labels of the slices and errors that are shown."""
    errors = {getattr(error, name) for task in tasks for error in task.errors}
    return errors | {row.filters[name] for task in tasks for row in task.slices if name in row.filters}


def _axis(metric: str, tasks: Sequence[TaskView]) -> Axis:
    """Return the range of a metric's intervals over all tasks and systems, widened to tenths."""
    rows = [task.key_metrics[metric] for task in tasks if metric in task.key_metrics]
    intervals = [part for row in rows for part in (row.value, row.other, row.floor) if part is not None]
    ends = [end for part in intervals for end in (part.low, part.high) if math.isfinite(end)]
    low, high = math.floor(10 * min(ends, default=0)) / 10, math.ceil(10 * max(ends, default=1)) / 10
    return Axis(low, high if high > low else low + 0.1)


def _training_charts(training: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, str]:
    """Return a chart of each metric with several points."""
    charts = {}
    for name, points in training.items():
        if len(points) > 1:
            line = Line(name, [step for step, _ in points], [value for _, value in points])
            charts[name] = line_chart(name, "step", "", [line], unit_axes=False)
    return charts
