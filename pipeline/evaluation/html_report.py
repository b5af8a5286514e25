"""HTML report of a version, for people who decide on its promotion.

The page is self-contained: it loads nothing and follows the reader's light or dark mode. Texts of ads are
untrusted, so the templates escape every value.

Shape legend: N rows, C labels.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.escaping import content_hash, escape_invisible
from pipeline.evaluation.curves import confusion, curve_charts, most_confident_errors
from pipeline.evaluation.results import GateOutcome, Interval, Metrics, SliceResult
from pipeline.evaluation.svg_charts import Line, inline_svg, line_chart
from pipeline.evaluation.task_metrics import LabeledRows, Predictions

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

NUM_ERRORS = 50  # of a task

MAX_TEXT_CHARS = 300  # of a query, title or description

LOWER_IS_BETTER = ("calibration_error", "brier", "log_loss", "defect_rate")

FILTER_DIMENSIONS = ("market", "label")  # slices that the page's filters select

NUM_SHADES = 10  # of cells of a confusion table, styled in report.css


@dataclass(frozen=True)
class TaskReport:
    """One task's test rows with the predictions and metrics of a version, and those of another version."""

    table: pa.Table
    rows: LabeledRows
    predictions: Predictions
    metrics: Metrics
    slices: Sequence[SliceResult]
    other_predictions: Predictions | None = None
    other_metrics: Metrics | None = None
    difference: Metrics | None = None  # this version minus the other


@dataclass(frozen=True)
class VersionReport:
    """Content of the page."""

    model: str
    version: str
    standing: str  # such as champion or challenger
    against: str | None  # version that it is compared with
    facts: Mapping[str, str]  # digests and ids, by name
    verdict: GateOutcome | None
    macro: Metrics  # averages over tasks, by heading
    tasks: Sequence[TaskReport]
    training: Mapping[str, Sequence[tuple[float, float]]]  # (step, value) by metric
    drift: str  # aligned text


@dataclass(frozen=True)
class _MetricRow:
    """One metric of both versions."""

    name: str
    value: Interval
    other: Interval | None
    difference: Interval | None
    change: str  # better, worse, or empty if the interval of the difference includes 0


@dataclass(frozen=True)
class _ConfusionCell:
    count: int
    shade: int  # share of its row, of NUM_SHADES


@dataclass(frozen=True)
class _ConfusionRow:
    label: str
    cells: Sequence[_ConfusionCell]


@dataclass(frozen=True)
class _TaskSection:
    """One task as the page shows it."""

    name: str
    num_rows: int
    num_relevant: int
    num_queries: int
    metrics: Sequence[_MetricRow]
    charts: "Sequence[Markup]"
    labels: Sequence[str]
    confusion: Sequence[_ConfusionRow]


@dataclass(frozen=True)
class _SliceRow:
    task: str
    result: SliceResult
    filters: Mapping[str, str]  # choice by filter


@dataclass(frozen=True)
class _ErrorRow:
    """One row whose probability is on the wrong side of one half."""

    task: str
    market: str
    label: str
    probability: float
    query: str
    ad_title: str
    ad_description: str
    row_id: str


def report_page(report: VersionReport) -> str:
    """Render the page."""
    markets = {market for task in report.tasks for market in task.table.column("market").to_pylist()}
    labels = {label for task in report.tasks for label in task.rows.task.labels}
    filters = {
        "task": [task.rows.task.name for task in report.tasks],
        "market": sorted(markets),
        "label": sorted(labels),
    }
    slices = _slice_rows(report.tasks)
    style, script = _asset("report.css"), _asset("report.js")
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            content_security_policy=_content_security_policy(style, script),
            style=style,
            script=script,
            filters=filters,
            tasks=[_task_section(task, report) for task in report.tasks],
            training_charts=_training_charts(report.training),
            slices=slices,
            num_small_slices=sum(len(task.slices) for task in report.tasks) - len(slices),
            errors=[row for task in report.tasks for row in _error_rows(task)],
        )
    )
    return escape_invisible(page, keep="\n\t")


def _content_security_policy(style: str, script: str) -> str:
    """Return the policy of a page that loads nothing and runs no style or script but these two."""
    return (
        f"default-src 'none'; img-src data:; style-src {content_hash(style)}; "
        f"script-src {content_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> "Markup":
    """Return a style or script of the page as it stands in it."""
    from markupsafe import Markup

    return Markup(_environment().get_template(name).render())


@functools.cache
def _environment() -> "jinja2.Environment":
    """Return the environment of the templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["clip"] = _clip
    environment.tests["finite"] = math.isfinite
    return environment


def _clip(text: str) -> str:
    """Return a text of at most MAX_TEXT_CHARS characters."""
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1]}…"


def _task_section(task: TaskReport, report: VersionReport) -> _TaskSection:
    """Return the metrics and charts of one task."""
    lines = [(f"version {report.version}", task.predictions.probability_N)]
    if task.other_predictions is not None:
        lines.append((f"version {report.against}", task.other_predictions.probability_N))
    charts = curve_charts(lines, task.rows.is_relevant_N).values()
    return _TaskSection(
        name=task.rows.task.name,
        num_rows=len(task.rows.label_N),
        num_relevant=int(task.rows.is_relevant_N.sum()),
        num_queries=len(set(task.rows.query_N)),
        metrics=[_metric_row(task, name) for name in task.metrics],
        charts=[_markup(chart) for chart in charts],
        labels=task.rows.task.labels,
        confusion=_confusion_rows(task),
    )


def _metric_row(task: TaskReport, name: str) -> _MetricRow:
    """Return a metric of both versions and whether their difference is certain."""
    shown = name.replace("_", " ")
    if task.other_metrics is None or task.difference is None or name not in task.difference:
        return _MetricRow(shown, task.metrics[name], None, None, "")
    difference = task.difference[name]
    sign = -1 if name in LOWER_IS_BETTER else 1
    gain_low, gain_high = sorted((sign * difference.low, sign * difference.high))
    change = "better" if gain_low > 0 else "worse" if gain_high < 0 else ""
    return _MetricRow(shown, task.metrics[name], task.other_metrics[name], difference, change)


def _confusion_rows(task: TaskReport) -> list[_ConfusionRow]:
    """Return counts by true and predicted label; none for a system without label probabilities."""
    labels, label_probability_NC = task.rows.task.labels, task.predictions.label_probability_NC
    if label_probability_NC is None:
        return []
    count_CC = confusion(task.rows.label_N, label_probability_NC.argmax(1), len(labels))
    rows = []
    for label, count_C in zip(labels, count_CC, strict=True):
        total = max(1, int(count_C.sum()))
        rows.append(
            _ConfusionRow(
                label, [_ConfusionCell(int(n), round(NUM_SHADES * int(n) / total)) for n in count_C]
            )
        )
    return rows


def _training_charts(training: Mapping[str, Sequence[tuple[float, float]]]) -> "list[Markup]":
    """Return a chart of each metric with several points."""
    charts = []
    for name, points in training.items():
        if len(points) > 1:
            line = Line(name, [step for step, _ in points], [value for _, value in points])
            charts.append(_markup(line_chart(name, "step", "", [line], unit_axes=False)))
    return charts


def _slice_rows(tasks: Sequence[TaskReport]) -> list[_SliceRow]:
    """Return the measured slices by PR-AUC from the lowest; those of one class come last."""
    rows = []
    for task in tasks:
        name = task.rows.task.name
        for part in task.slices:
            if part.metrics is not None:
                narrow = {part.by: part.name} if part.by in FILTER_DIMENSIONS else {}
                rows.append(_SliceRow(name, part, {"task": name, **narrow}))
    return sorted(rows, key=_slice_order)


def _slice_order(row: _SliceRow) -> tuple[bool, float, float]:
    """Sort key: slices of one class last, then by PR-AUC, then by log loss from the highest."""
    metrics: Any = row.result.metrics
    pr_auc = metrics["pr_auc"].value
    return row.result.has_one_class, 0.0 if np.isnan(pr_auc) else pr_auc, -metrics["log_loss"].value


def _error_rows(task: TaskReport) -> list[_ErrorRow]:
    """Return the most confident errors with their texts."""
    probability_N = task.predictions.probability_N
    rows = []
    for number in most_confident_errors(probability_N, task.rows.is_relevant_N, NUM_ERRORS).tolist():
        texts = {
            name: task.table.column(name)[number].as_py() or ""
            for name in ("market", "query", "ad_title", "ad_description", "row_id")
        }
        label = task.rows.task.labels[task.rows.label_N[number]]
        rows.append(_ErrorRow(task.rows.task.name, label=label, probability=probability_N[number], **texts))
    return rows


def _markup(svg: str) -> "Markup":
    """Return a chart as safe HTML."""
    from markupsafe import Markup

    return Markup(inline_svg(svg))
