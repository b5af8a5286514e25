"""Small charts as SVG text, in colours that follow the page's light or dark."""

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, MARGIN = 340, 250, 38

CURVE_POINTS = 200  # of a curve at most

COLOURS = ("#2563c9", "#c2571a", "#2e8540", "#8a3fa8", "#8a6d00", "#0f7c86")  # of a chart outside a page

Line = tuple[str, Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]  # name, x, y


def line_chart(
    title: str, x_name: str, y_name: str, lines: Sequence[Line], diagonal: bool = False, unit: bool = True
) -> str:
    """Lines over common axes; with `unit` both go from 0 to 1. A name and a class a line, for the legend."""
    xs, ys = (
        np.concatenate([np.asarray(line[1], float) for line in lines]),
        np.concatenate([np.asarray(line[2], float) for line in lines]),
    )
    x_low, x_high = (0.0, 1.0) if unit else limits(xs)
    y_low, y_high = (0.0, 1.0) if unit else limits(ys)

    def place(x: float, y: float) -> str:
        across = MARGIN + (x - x_low) / (x_high - x_low) * (WIDTH - 2 * MARGIN)
        return f"{across:.1f},{HEIGHT - MARGIN - (y - y_low) / (y_high - y_low) * (HEIGHT - 2 * MARGIN):.1f}"

    drawn = (
        [f'<polyline class="diagonal" points="{place(x_low, y_low)} {place(x_high, y_high)}"/>']
        if diagonal
        else []
    )
    legend = []
    for order, (name, line_x, line_y) in enumerate(lines):
        chosen = thinned(len(line_x))
        points = " ".join(place(float(line_x[i]), float(line_y[i])) for i in chosen)
        drawn.append(f'<polyline class="line{order % 6}" points="{points}"/>')
        legend.append(f'<tspan class="text{order % 6}" dx="8">{escape(name)}</tspan>')
    frame = (
        f'<rect class="frame" x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" '
        f'height="{HEIGHT - 2 * MARGIN}"/>'
    )
    ticks = [
        (MARGIN, HEIGHT - MARGIN + 14, "start", number(x_low)),
        (WIDTH - MARGIN, HEIGHT - MARGIN + 14, "end", number(x_high)),
        (MARGIN - 4, HEIGHT - MARGIN, "end", number(y_low)),
        (MARGIN - 4, MARGIN + 8, "end", number(y_high)),
    ]
    texts = [f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in ticks]
    texts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    texts.append(
        f'<text x="12" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 12 '
        f'{HEIGHT / 2})">{escape(y_name)}</text>'
    )
    texts.append(
        f'<text class="title" x="{MARGIN}" y="14">{escape(title)}</text><text x="{MARGIN - 8}" '
        f'y="30">{"".join(legend)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{frame}{"".join(drawn)}{"".join(texts)}</svg>'
    )


def limits(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest, apart from each other."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def thinned(count: int) -> list[int]:
    """Positions of the points that are drawn, both ends among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, CURVE_POINTS)).astype(int).tolist()))


def number(value: float) -> str:
    """A tick's text."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def confusion_table(confusion_CC: np.ndarray, labels: Sequence[str]) -> str:
    """True label by decided label, shaded by the share of its row."""
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows = []
    for label, counts in zip(labels, confusion_CC, strict=True):
        total = max(1.0, float(counts.sum()))
        cells = "".join(
            f'<td style="--share:{count / total:.2f}" class="shaded">{count:,.0f}</td>' for count in counts
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    return (
        '<table class="confusion"><thead><tr><th>true \\ '
        f"decided</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def standalone(svg: str) -> str:
    """A chart as a file of its own, in fixed colours."""
    colours = "".join(
        f".line{n}{{stroke:{colour}}}.text{n}{{fill:{colour}}}" for n, colour in enumerate(COLOURS)
    )
    shapes = (
        "text{font:10px "
        "sans-serif}polyline{fill:none;stroke-width:1.6}.frame{fill:none;stroke:#ccc}.diagonal{stroke:#888}"
    )
    style = f"<style>{shapes}{colours}</style>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * HEIGHT}"'
    return svg.replace("<svg", head, 1).replace(
        ">", f'>{style}<rect width="100%" height="100%" fill="#fff"/>', 1
    )
