"""Charts as SVG: deterministic, small, and safe inside a page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
from matplotlib import rcParams

from pipeline.evaluation.svg_charts import Line, inline_svg, line_chart

X = np.linspace(0, 1, 5_000)


def chart(name: str = "version 2", power: float = 2.0) -> str:
    lines = [Line(name, X, 1 - X**power), Line("version 1", X, 1 - X)]
    return line_chart("relevant rows", "recall", "precision", lines)


def test_equal_charts_are_equal_files() -> None:
    assert chart() == chart()
    assert chart() != chart(power=3.0)


def test_long_curves_stay_small() -> None:
    assert len(chart()) < 30_000


def test_charts_leave_the_process_settings_alone() -> None:
    before = dict(rcParams)
    chart()
    assert dict(rcParams) == before


def test_names_are_no_formulas() -> None:
    name = r"$\frac$"
    svg = line_chart(name, name, name, [Line(name, [1, 2], [2, 1]), Line("x", [1, 2], [2, 1])])
    assert svg.count(name) == 4


def test_names_are_escaped() -> None:
    svg = chart(name="<script>&")
    assert "<script>" not in svg and "&lt;script&gt;" in svg
    ElementTree.fromstring(svg)


def test_inline_charts_follow_the_colors_of_the_page() -> None:
    inline = inline_svg(chart())
    assert "var(--c0)" in inline and "var(--ink)" in inline
    assert not re.search(r"#[0-9a-f]{6}\b", inline)
    assert "<style" not in inline and " style=" not in inline
    ElementTree.fromstring(inline)


def test_inline_charts_have_ids_of_their_own() -> None:
    ids, others = (set(re.findall(r' id="([^"]+)"', inline_svg(chart(power=power)))) for power in (2.0, 3.0))
    assert ids and others and not ids & others


def test_charts_load_nothing() -> None:
    found = re.findall(r'https?://[^"\s]+', inline_svg(chart()))
    assert {address.split("/")[2] for address in found} <= {"www.w3.org"}, "namespaces only"
    assert "<!DOCTYPE" not in chart()


def test_single_line_named_as_the_title_has_no_legend() -> None:
    svg = line_chart("loss", "step", "", [Line("loss", [1, 2, 3], [3, 2, 1])], unit_axes=False)
    assert svg.count(">loss<") == 1
