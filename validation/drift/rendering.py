"""Drift report as text and as a picture: a table of PSI by feature and task, and the largest changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.files import atomic_writer
from validation.drift.comparison import ALL_TASKS, DriftReport, FeatureDrift, ShareChange, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

MAX_TASKS = 8  # columns beside all tasks; the tasks with the largest PSI

MAX_TASK_CHARS = 12  # of a task's name above its column

NUM_DESCRIBED = 8  # features described in words

NUM_PLOTTED = 4  # features whose changes are drawn

MARKS: dict[Verdict, str] = {"steady": " ", "noise": "~", "empty": "-", "look": "?", "drift": "!"}

_COLORS: dict[Verdict, str] = {
    "steady": "#e4ede4",
    "noise": "#dcdcdc",
    "empty": "#a9a9a9",
    "look": "#f6d77a",
    "drift": "#dd6b55",
}

_LEGEND: dict[Verdict, str] = {
    "steady": "steady",
    "noise": "within chance",
    "look": "look",
    "drift": "drift",
    "empty": "one side empty",
}

_REFERENCE_COLOR, _CURRENT_COLOR = "#8fa8bf", "#d2691e"


def drift_rows(report: DriftReport) -> list[list[str]]:
    """Return a heading, the row counts, and one row of cells per feature.

    The first cell of a row is its name, the others are numbers by task. A mark of MARKS follows each PSI.
    """
    grid = _Grid.of(report)
    rows = [["", *(_shorten(task) for task in grid.tasks)]]
    for name, by_task in (
        ("reference rows", report.reference_rows),
        ("current rows", report.current_rows),
    ):
        counts = [sum(by_task.values()) if task == ALL_TASKS else by_task[task] for task in grid.tasks]
        rows.append([name, *(f"{count:,} " for count in counts)])
    for feature in grid.features:
        rows.append([feature, *(_cell(grid.cells.get((feature, task))) for task in grid.tasks)])
    return rows


def _shorten(task: str) -> str:
    return task if len(task) <= MAX_TASK_CHARS else f"{task[: MAX_TASK_CHARS - 1]}…"


def _cell(drift: FeatureDrift | None) -> str:
    if drift is None:
        return ""
    number = "" if drift.psi is None else f"{drift.psi:.3f}"
    return number + MARKS[drift.verdict]


def drift_legend(report: DriftReport) -> str:
    """Return a line that explains the marks of `drift_rows`."""
    look, drift = report.thresholds.look, report.thresholds.drift
    return (
        f"PSI against the reference: ! drift, at least {drift:g}; ? look, at least {look:g}; "
        "~ within chance; - nothing to compare"
    )


def drift_messages(report: DriftReport) -> list[str]:
    """Describe the features that moved most, one line each."""
    return [describe(drift) for drift in report.moved()[:NUM_DESCRIBED]]


def describe(drift: FeatureDrift) -> str:
    """Describe one feature that moved, with its largest changes."""
    task = "all tasks" if drift.task == ALL_TASKS else drift.task
    subject = f"{drift.verdict}: {drift.feature} of {task}"
    if drift.psi is None:
        return f"{subject}: only one side holds any"
    changes = ", ".join(f"{c.category} {c.reference:.1%} -> {c.current:.1%}" for c in drift.changes)
    return f"{subject}: PSI {drift.psi:.3f}, KL {drift.kl:.3f}; {changes}"


@dataclass(frozen=True)
class _Grid:
    """Cells of the table, and its rows and columns in order."""

    cells: Mapping[tuple[str, str], FeatureDrift]  # by feature and task
    features: list[str]
    tasks: list[str]

    @classmethod
    def of(cls, report: DriftReport) -> _Grid:
        """Choose the tasks with the largest PSI."""
        largest_psi = {
            task: max([drift.psi or 0 for drift in report.features if drift.task == task], default=0.0)
            for task in report.reference_rows
        }
        shown = set(sorted(largest_psi, key=lambda task: (-largest_psi[task], task))[:MAX_TASKS])
        return cls(
            {(drift.feature, drift.task): drift for drift in report.features},
            list(dict.fromkeys(drift.feature for drift in report.features)),
            [ALL_TASKS, *(task for task in report.reference_rows if task in shown)],
        )


def plot_drift(report: DriftReport, path: Path) -> None:
    """Write a PNG with the table, verdicts as colors, and the largest changes beside it.

    Equal reports give equal bytes.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # names of markets are no formulas
        canvas = _draw(report)
        with atomic_writer(path) as file:
            canvas.print_png(file, metadata={"Software": None})  # the version of matplotlib is left out


def _draw(report: DriftReport) -> FigureCanvasAgg:
    # not pyplot, which keeps figures and chooses a backend for the process
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = _Grid.of(report)
    width = 5.5 + 1.25 * len(grid.tasks) + 5.5
    figure = Figure(figsize=(width, max(4.5, 0.32 * len(grid.features) + 1.6)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    table, details = figure.subplots(1, 2, width_ratios=[1.5 + 0.9 * len(grid.tasks), 5])
    _draw_table(table, grid)
    _draw_changes(details, [drift for drift in report.moved() if drift.psi is not None][:NUM_PLOTTED])
    thresholds = report.thresholds
    figure.suptitle(
        f"Drift: PSI of {sum(report.current_rows.values()):,} rows against "
        f"{sum(report.reference_rows.values()):,} rows of the reference"
        f" (look {thresholds.look:g}, drift {thresholds.drift:g})"
    )
    return canvas


def _task_title(task: str) -> str:
    return "all tasks" if task == ALL_TASKS else task


def _draw_table(axes: Axes, grid: _Grid) -> None:
    from matplotlib.patches import Patch, Rectangle

    for y, feature in enumerate(grid.features):
        for x, task in enumerate(grid.tasks):
            drift = grid.cells.get((feature, task))
            if drift:
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=_COLORS[drift.verdict]))
                number = "–" if drift.psi is None else f"{drift.psi:.2f}"
                axes.text(x, y, number, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.5, len(grid.tasks) - 0.5), ylim=(len(grid.features) - 0.5, -0.5))
    axes.set_xticks(
        range(len(grid.tasks)), [_task_title(task) for task in grid.tasks], rotation=20, ha="left"
    )
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(grid.features)), grid.features)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.legend(
        handles=[Patch(color=_COLORS[verdict], label=label) for verdict, label in _LEGEND.items()],
        ncols=5,
        frameon=False,
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        handlelength=1,
        columnspacing=1,
    )


def _draw_changes(axes: Axes, drifts: list[FeatureDrift]) -> None:
    """Draw a pair of bars for each change, under a heading for each feature."""
    drifts = [drift for drift in drifts if drift.changes]
    if not drifts:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing moved", ha="center", va="center", transform=axes.transAxes)
        return
    y, ticks = 0.0, []
    for i, drift in enumerate(drifts):
        heading = f"{drift.feature}, {_task_title(drift.task)}: PSI {drift.psi:.2f}"
        axes.text(0, y + (0.9 if i else 0), heading, fontsize=9, fontweight="bold", va="center")
        y += 1.9 if i else 1.0
        for change in drift.changes:
            _draw_change(axes, y, change)
            ticks.append((y, change.category))
            y += 1.0
    largest = max(max(change.reference, change.current) for drift in drifts for change in drift.changes)
    axes.set(
        ylim=(y, -0.7),
        xlim=(0, 1.3 * largest),
        xlabel="share of the reference (blue) and of the current rows (orange)",
    )
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_change(axes: Axes, y: float, change: ShareChange) -> None:
    shares = [change.reference, change.current]
    axes.barh([y - 0.18, y + 0.18], shares, height=0.34, color=[_REFERENCE_COLOR, _CURRENT_COLOR])
    label = f"  {change.reference:.1%} → {change.current:.1%}"
    axes.text(max(shares), y, label, va="center", fontsize=8)
