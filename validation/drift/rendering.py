"""A drift report for people: one screen of text, and one picture. Columns are tasks, rows are features, cells
are PSI.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage.filesystem import replacing
from validation.drift.comparison import ALL_TASKS, DriftReport, FeatureDrift

MAX_TASKS = 8  # columns beside "all"; those that moved most

NUM_DETAILS = 8

_MARKS = {"steady": " ", "noise": "~", "empty": "-", "look": "?", "drift": "!"}

_COLOURS = {
    "steady": "#e4ede4",
    "noise": "#dcdcdc",
    "empty": "#a9a9a9",
    "look": "#f6d77a",
    "drift": "#dd6b55",
}


def as_text(report: DriftReport) -> str:
    """The report as an aligned table and a line for each of the features that moved most."""
    cells, features, tasks = _grid(report)
    width = max(len(name) for name in features)
    thresholds = report.thresholds
    lines = [
        f"PSI against the reference: ! drift, at least {thresholds.drift:g}; ? look, at least "
        f"{thresholds.look:g}; "
        "~ chance may do it; - nothing to compare",
        "".join([" " * width, *(f" {_short(task):>12} " for task in tasks)]),
    ]
    for name, sizes in (("rows then", report.reference_rows), ("rows now", report.current_rows)):
        counts = [sum(sizes.values()) if task == ALL_TASKS else sizes[task] for task in tasks]
        lines.append("".join([f"{name:{width}}", *(f" {count:>12,} " for count in counts)]))
    for feature in features:
        lines.append(
            "".join([f"{feature:{width}}", *(_cell(cells.get((feature, task))) for task in tasks)]).rstrip()
        )
    return "\n".join([*lines, *map(sentence, report.moved()[:NUM_DETAILS])])


def _short(task: str) -> str:
    return task if len(task) <= 12 else f"{task[:11]}…"


def _cell(found: FeatureDrift | None) -> str:
    return (
        " " * 14
        if found is None
        else f" {'' if found.psi is None else format(found.psi, '.3f'):>12}{_MARKS[found.verdict]}"
    )


def sentence(found: FeatureDrift) -> str:
    """One feature that moved, and where to."""
    where = f"{found.verdict}: {found.feature} of {'all tasks' if found.task == ALL_TASKS else found.task}"
    if found.psi is None:
        return f"{where}: only one side holds any"
    return f"{where}: PSI {found.psi:.3f}, KL {found.kl:.3f}; " + ", ".join(
        f"{name} {then:.1%} -> {now:.1%}" for name, then, now in found.changes
    )


def _grid(report: DriftReport) -> tuple[dict[tuple[str, str], FeatureDrift], list[str], list[str]]:
    """Cells by feature and task, and the features and tasks in the order they are shown."""
    cells = {(found.feature, found.task): found for found in report.features}
    features = list(dict.fromkeys(found.feature for found in report.features))
    farthest = {
        task: max([found.psi or 0 for found in report.features if found.task == task], default=0.0)
        for task in report.reference_rows
    }
    shown = set(sorted(farthest, key=lambda task: (-farthest[task], task))[:MAX_TASKS])
    return cells, features, [ALL_TASKS, *(task for task in report.reference_rows if task in shown)]


def plot_drift(report: DriftReport, path: Path) -> None:
    """Write a PNG: the table with verdicts as colours, and beside it where the features that moved most
    went.
    """
    # not pyplot, which keeps figures and chooses a backend for the process
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, features, tasks = _grid(report)
    figure = Figure(
        figsize=(5.5 + 1.25 * len(tasks) + 5.5, max(4.5, 0.32 * len(features) + 1.6)), layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    table, details = figure.subplots(1, 2, width_ratios=[1.5 + 0.9 * len(tasks), 5])
    _draw_table(table, cells, features, tasks)
    _draw_details(details, [found for found in report.moved() if found.psi is not None][:4])
    thresholds = report.thresholds
    figure.suptitle(
        f"Drift: PSI of {sum(report.current_rows.values()):,} rows against "
        f"{sum(report.reference_rows.values()):,} rows of the reference"
        f" (look {thresholds.look:g}, drift {thresholds.drift:g})"
    )
    with replacing(path) as file:
        canvas.print_png(file, metadata={"Software": None})


def _draw_table(
    axes: Any, cells: dict[tuple[str, str], FeatureDrift], features: list[str], tasks: list[str]
) -> None:
    from matplotlib.patches import Patch, Rectangle

    for y, feature in enumerate(features):
        for x, task in enumerate(tasks):
            found = cells.get((feature, task))
            if found:
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=_COLOURS[found.verdict]))
                axes.text(
                    x,
                    y,
                    "–" if found.psi is None else f"{found.psi:.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                )
    axes.set(xlim=(-0.5, len(tasks) - 0.5), ylim=(len(features) - 0.5, -0.5))
    axes.set_xticks(
        range(len(tasks)),
        ["all tasks" if task == ALL_TASKS else task for task in tasks],
        rotation=20,
        ha="left",
    )
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(features)), features)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    words = {
        "steady": "steady",
        "noise": "within chance",
        "look": "look",
        "drift": "drift",
        "empty": "one side empty",
    }
    axes.legend(
        handles=[Patch(color=_COLOURS[verdict], label=label) for verdict, label in words.items()],
        ncols=5,
        frameon=False,
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        handlelength=1,
        columnspacing=1,
    )


def _draw_details(axes, moved: list[FeatureDrift]) -> None:  # type: ignore[no-untyped-def]
    bars = [(found, *change) for found in moved for change in found.changes]
    if not bars:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing moved", ha="center", va="center", transform=axes.transAxes)
        return
    y, ticks = 0.0, []
    for i, (found, category, then, now) in enumerate(bars):
        if i == 0 or found is not bars[i - 1][0]:
            where = "all tasks" if found.task == ALL_TASKS else found.task
            axes.text(
                0,
                y + (0.9 if i else 0),
                f"{found.feature}, {where}: PSI {found.psi:.2f}",
                fontsize=9,
                fontweight="bold",
                va="center",
            )
            y += 1.9 if i else 1.0
        axes.barh([y - 0.18, y + 0.18], [then, now], height=0.34, color=["#8fa8bf", "#d2691e"])
        axes.text(max(then, now), y, f"  {then:.1%} → {now:.1%}", va="center", fontsize=8)
        ticks.append((y, category))
        y += 1.0
    axes.set(
        ylim=(y, -0.7),
        xlim=(0, 1.3 * float(np.max([bar[2:] for bar in bars]))),
        xlabel="share of the reference (blue) and now (orange)",
    )
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
