"""Small line charts as SVG: standalone files, or inline in a page whose colors they follow."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZE_INCHES = (3.6, 2.7)

MAX_CURVE_POINTS = 200  # keeps a chart at some kilobytes

LINE_COLORS = ("#2563c9", "#c2571a", "#2e8540", "#8a3fa8", "#8a6d00", "#0f7c86")
INK, DIM, FRAME, BACKGROUND = "#1d2126", "#5d6672", "#d9dde3", "#ffffff"

# custom properties of templates/report.css
CSS_COLORS = {
    INK: "--ink",
    DIM: "--dim",
    FRAME: "--line",
    BACKGROUND: "--card",
    **{color: f"--c{number}" for number, color in enumerate(LINE_COLORS)},
}

SVG_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text elements, not as paths
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # names of markets and tasks are no formulas
}
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str  # in the legend
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


def line_chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[Line],
    diagonal: bool = False,
    unit_axes: bool = True,
) -> str:
    """Draw lines over common axes and return a standalone SVG document.

    Args:
        title: Title of the chart.
        x_name: Label of the x axis.
        y_name: Label of the y axis.
        lines: Lines to draw; a single one named as the title gets no legend.
        diagonal: Draw the line from corner to corner.
        unit_axes: Both axes go from 0 to 1.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Equal charts get equal ids; different charts of one page get different ones.
    content = [(line.name, list(line.x), list(line.y)) for line in lines]
    salt = hashlib.sha256(repr((title, content)).encode()).hexdigest()
    # The SVG writer reads its settings from the process's rcParams; the context restores them.
    with rc_context({**SVG_SETTINGS, "svg.hashsalt": salt}):
        figure = Figure(figsize=SIZE_INCHES, facecolor=BACKGROUND, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        axes = figure.add_subplot()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=DIM, linewidth=0.8, linestyle=(0, (3, 4)))
        for number, line in enumerate(lines):
            kept = _thin(len(line.x))
            x, y = np.asarray(line.x, float)[kept], np.asarray(line.y, float)[kept]
            axes.plot(x, y, color=LINE_COLORS[number % len(LINE_COLORS)], linewidth=1.4, label=line.name)
        if unit_axes:
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        _style(axes, title, x_name, y_name)
        if [line.name for line in lines] != [title]:
            figure.legend(
                loc="outside lower left",
                ncols=len(lines),
                frameon=False,
                fontsize=8,
                labelcolor="linecolor",
                handlelength=1.2,
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]  # without the XML and document type declarations


def inline_svg(svg: str) -> str:
    """Return a chart for use inside a page: colors follow the page, and ids that may repeat are dropped."""
    for color, name in CSS_COLORS.items():
        svg = svg.replace(color, f"var({name})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r' style="([^"]*)"', lambda style: _as_attributes(style[1]), svg)
    return re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)


def _as_attributes(style: str) -> str:
    """Return the declarations of a style attribute as attributes, which the page's policy allows."""
    return re.sub(r"\s*([a-z-]+): *([^;]*);?", r' \1="\2"', style)


def _style(axes: Any, title: str, x_name: str, y_name: str) -> None:
    """Apply the colors and font sizes of all charts."""
    axes.set_title(title, loc="left", color=INK, fontsize=9, fontweight="bold")
    axes.set_xlabel(x_name, color=DIM, fontsize=8)
    axes.set_ylabel(y_name, color=DIM, fontsize=8)
    axes.set_facecolor("none")
    axes.tick_params(colors=DIM, labelsize=8, length=2, width=0.6)
    axes.grid(color=FRAME, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)


def _thin(count: int) -> np.ndarray:
    """Return the positions of the points to draw, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_CURVE_POINTS)).astype(int))
