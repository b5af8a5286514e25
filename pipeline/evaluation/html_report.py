"""A version's report: what it was judged for and how, for people who answer for it. Written from measured
values; texts are escaped.

Shape legend: N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.curves import confusion, curve_charts, surest_errors
from pipeline.evaluation.html_page import data, page, table
from pipeline.evaluation.svg_charts import confusion_table, line_chart
from pipeline.evaluation.task_metrics import Said, Truth

ERRORS = 50  # of a task

SHOWN_CHARS = 300  # of a text

LOWER_IS_BETTER = ("calibration_error", "brier", "log_loss", "defect_rate")


@dataclass(frozen=True)
class TaskReport:
    """One task's test rows, what the version says of them and, where there is one to compare with, what the
    other one says.
    """

    rows: pa.Table
    truth: Truth
    said: Said
    figures: Mapping[str, Interval]
    slices: Sequence[Mapping[str, Any]]
    other_said: Said | None = None
    other_figures: Mapping[str, Interval] | None = None
    difference: Mapping[str, Interval] | None = None


@dataclass(frozen=True)
class VersionReport:
    """All that the page tells."""

    model: str
    version: str
    standing: str  # champion, challenger or neither
    against: str | None  # the version it is compared with
    facts: Mapping[str, str]  # digests, dates, by name
    verdict: Mapping[str, Any] | None  # of the gate
    macro: Mapping[str, Interval]  # by the name of what it is
    tasks: Sequence[TaskReport]
    training: Mapping[str, Sequence[tuple[float, float]]]  # (step, value) by figure
    drift: str  # aligned text


def report_page(report: VersionReport) -> str:
    """The whole page."""
    names = [one.truth.task.name for one in report.tasks]
    markets = sorted({market for one in report.tasks for market in one.rows.column("market").to_pylist()})
    labels = sorted({label for one in report.tasks for label in one.truth.task.labels})
    sections = [
        ("Gate", gate_section(report.verdict)),
        ("Figures on the test rows", figures_section(report)),
        ("Curves", "".join(curves_of(one, report) for one in report.tasks)),
        ("Training", training_section(report.training)),
        ("Slices, the worst first", slices_section(report.tasks)),
        ("Drift of the judged rows since this version's training rows", f"<pre>{escape(report.drift)}</pre>"),
        ("Errors it was surest of", errors_section(report.tasks)),
    ]
    return page(
        f"{report.model} version {report.version}",
        header(report),
        {"task": names, "market": markets, "label": labels},
        sections,
    )


def header(report: VersionReport) -> str:
    """Verdict, standing, what it is made of."""
    verdict = report.verdict
    if verdict is None:
        banner = (
            '<div class="verdict"><b>Not judged by the gate.</b> It was not compared with a champion.</div>'
        )
    else:
        outcome = "passed" if verdict["passed"] else "refused"
        reasons = "; ".join(
            f"{rule['rule']}: {rule['reason']}" for rule in verdict["rules"] if not rule["passed"]
        )
        told = (
            f"<b>{outcome.capitalize()} by the gate</b> against version "
            f"{escape(str(verdict['against']))}. {escape(reasons)}"
        )
        banner = f'<div class="verdict {outcome}">{told}</div>'
    facts = "<br>".join(f"{escape(name)}: {escape(value)}" for name, value in report.facts.items())
    return f'{banner}<p>It is <b>{escape(report.standing)}</b> now.</p><p class="dim">{facts}</p>'


def gate_section(verdict: Mapping[str, Any] | None) -> str:
    """A line a rule, a line a behavioural case."""
    if verdict is None:
        return "<p>No verdict is on record; `relevance evaluate --version` makes one.</p>"
    rules = [
        [outcome(rule["passed"]), escape(rule["rule"]), escape(rule["reason"])] for rule in verdict["rules"]
    ]
    cases = [
        [
            outcome(case["value"] <= case["at_most"]),
            escape(case["task"]),
            escape(case["told"]),
            f"{case['value']:+.3f}",
            f"{case['at_most']}",
        ]
        for case in verdict["behaviour"]
    ]
    attributes = [data(task=case["task"]) for case in verdict["behaviour"]]
    return (
        table(["", "rule", "reason"], rules)
        + "<h3>Behaviour</h3>"
        + table(["", "task", "what is asked", "seen", "at most"], cases, attributes)
    )


def outcome(passed: bool) -> str:
    """A mark that needs no colour."""
    return (
        '<span class="better">✓&nbsp;passed</span>' if passed else '<span class="worse">✗&nbsp;refused</span>'
    )


def figures_section(report: VersionReport) -> str:
    """Each task's figures with intervals, beside those of the other version."""
    lines = "".join(
        f"<p>{escape(name)}: {with_interval(figure)}</p>" for name, figure in report.macro.items()
    )
    parts = [lines, '<p class="dim">Intervals: 95 %, queries drawn again 1,000 times.</p>']
    for one in report.tasks:
        headings = ["figure", f"version {escape(report.version)}"]
        if report.against:
            headings += [f"version {escape(report.against)}", "difference"]
        rows = [
            [escape(name.replace("_", " ")), with_interval(figure), *beside(one, name)]
            for name, figure in one.figures.items()
        ]
        counts = (
            f"{len(one.truth.label_N):,} rows, {int(one.truth.positive_N.sum()):,} relevant, "
            f"{len(set(one.truth.query_N)):,} queries"
        )
        name = one.truth.task.name
        parts.append(
            f"<div{data(task=name)}><h3>{escape(name)}</h3><p>{counts}</p>{table(headings, rows)}</div>"
        )
    return "".join(parts)


def beside(one: TaskReport, name: str) -> list[str]:
    """The other version's figure, and the difference, marked where the interval leaves no doubt."""
    if one.other_figures is None or one.difference is None:
        return []
    if name not in one.difference:
        return ["", ""]
    gap = one.difference[name]
    if not np.isfinite(gap.value):
        return [with_interval(one.other_figures[name]), "not defined"]
    sign = -1 if name in LOWER_IS_BETTER else 1
    low, high = sorted((sign * gap.low, sign * gap.high))
    mark = "better" if low > 0 else "worse" if high < 0 else ""
    return [
        with_interval(one.other_figures[name]),
        f'{gap.value:+.3f} <span class="{mark or "dim"}">[{gap.low:+.3f}, {gap.high:+.3f}] {mark}</span>',
    ]


def with_interval(figure: Interval) -> str:
    """A figure and its 95 % interval."""
    if not np.isfinite(figure.value):
        return "not defined"
    return f'{figure.value:.3f} <span class="dim">[{figure.low:.3f}, {figure.high:.3f}]</span>'


def curves_of(one: TaskReport, report: VersionReport) -> str:
    """Precision and recall of both classes, reliability, confusion."""
    sides = [(f"version {report.version}", one.said)] + (
        [(f"version {report.against}", one.other_said)] if one.other_said else []
    )
    charts = list(
        curve_charts([(name, said.probability_N) for name, said in sides], one.truth.positive_N).values()
    )
    task = one.truth.task
    if one.said.label_probability_NC is not None:
        counts_CC = confusion(one.truth.label_N, one.said.label_probability_NC.argmax(1), len(task.labels))
        charts.append(confusion_table(counts_CC, task.labels))
    return (
        f"<div{data(task=task.name)}><h3>{escape(task.name)}</h3><div "
        f'class="charts">{"".join(f"<div>{c}</div>" for c in charts)}</div></div>'
    )


def training_section(training: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Losses and evaluations over steps."""
    charts = [
        line_chart(
            name,
            "step",
            "",
            [(name, [step for step, _ in points], [value for _, value in points])],
            unit=False,
        )
        for name, points in training.items()
        if len(points) > 1
    ]
    if not charts:
        return "<p>The registry knows no steps of this version's training.</p>"
    return f'<div class="charts">{"".join(f"<div>{chart}</div>" for chart in charts)}</div>'


def slices_section(tasks: Sequence[TaskReport]) -> str:
    """Every measured slice, by PR-AUC from the lowest; those of one class, where nothing can be ranked, come
    last.
    """
    found = [(one.truth.task.name, part) for one in tasks for part in one.slices if "figures" in part]
    found.sort(
        key=lambda pair: (
            one_class(pair[1]),
            pair[1]["figures"]["pr_auc"]["value"] or 0.0,
            -pair[1]["figures"]["log_loss"]["value"],
        )
    )
    rows, attributes = [], []
    for task, part in found:
        ranked = (
            ["one class"] * 2
            if one_class(part)
            else [as_text(part["figures"][name]) for name in ("pr_auc", "defect_pr_auc")]
        )
        shown = [*ranked, *(as_text(part["figures"][name]) for name in ("calibration_error", "log_loss"))]
        rows.append(
            [
                escape(task),
                escape(f"{part['by'].replace('_', ' ')}: {part['slice']}"),
                f"{part['rows']:,}",
                f"{part['relevant']:,}",
                *shown,
            ]
        )
        narrow = {part["by"]: part["slice"]} if part["by"] in ("market", "label") else {}
        attributes.append(data(task=task, **narrow))
    counted = sum(len(one.slices) for one in tasks) - len(found)
    left_out = (
        f"<p class='dim'>Slices of too few rows to measure, not shown: {counted}.</p>" if counted else ""
    )
    return (
        table(
            [
                "task",
                "slice",
                "rows",
                "relevant",
                "PR-AUC",
                "defects' PR-AUC",
                "calibration error",
                "log loss",
            ],
            rows,
            attributes,
        )
        + left_out
    )


def one_class(part: Mapping[str, Any]) -> bool:
    """Whether all rows of a slice are relevant, or none."""
    return part["relevant"] in (0, part["rows"])


def as_text(figure: Mapping[str, float | None]) -> str:
    """A figure of plain values."""
    given = [figure[key] for key in ("value", "low", "high")]
    value, low, high = (np.nan if number is None else number for number in given)
    return with_interval(Interval(value, low, high))


def errors_section(tasks: Sequence[TaskReport]) -> str:
    """The rows that the version was surest of and wrong about, with their texts."""
    rows, attributes = [], []
    for one in tasks:
        task, said = one.truth.task, one.said
        for row in surest_errors(said.probability_N, one.truth.positive_N, ERRORS):
            texts = {
                name: one.rows.column(name)[int(row)].as_py()
                for name in ("row_id", "query", "ad_title", "ad_description", "market")
            }
            label = task.labels[one.truth.label_N[row]]
            ad = (
                f"{clip(texts['ad_title'])}<br><span class='dim'>{clip(texts['ad_description'] or '')}</span>"
            )
            first = [
                escape(task.name),
                escape(texts["market"]),
                escape(label),
                f"{said.probability_N[row]:.3f}",
            ]
            rows.append([*first, clip(texts["query"]), ad, escape(texts["row_id"])])
            attributes.append(data(task=task.name, market=texts["market"], label=label))
    headings = ["task", "market", "label", "probability of relevant", "query", "ad", "row_id"]
    return '<p class="dim" id="shown"></p>' + table(headings, rows, attributes, table_id="errors")


def clip(text: str) -> str:
    """A text as the page shows it."""
    return escape(text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…")
