"""Report page without a browser: escaping, order and content."""

import base64
import hashlib
import html
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.evaluation.comparison import compare_task, labeled_rows
from pipeline.evaluation.html_report import MAX_TEXT_CHARS, TaskReport, VersionReport, report_page
from pipeline.evaluation.results import CaseResult, GateOutcome, Interval, RuleOutcome
from pipeline.evaluation.task_metrics import Predictions, metrics_with_intervals, slice_metrics
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x>\u202e\x1b[31m"


def predictions(label_N: np.ndarray, noise: float) -> Predictions:
    random = np.random.default_rng(int(noise * 10))
    probability_N = np.clip(0.3 + 0.4 * label_N + noise * random.normal(size=len(label_N)), 0.01, 0.99)
    probability_NC = np.stack([1 - probability_N, probability_N], axis=1)
    return Predictions(probability_N, probability_NC, np.where(probability_N > 0.5, "relevant", "abstain"))


@pytest.fixture(scope="module")
def report() -> VersionReport:
    rows = planted_rows("two", 120, 1)
    for row in rows:
        row["ad_title"] += HOSTILE
        row["ad_description"] = "long " * 200
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    task = Task(name="two", labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
    labeled = labeled_rows(task, table)
    own, other = predictions(labeled.label_N, 0.2), predictions(labeled.label_N, 0.6)
    metrics, _ = metrics_with_intervals(labeled, own, 1)
    compared = compare_task(labeled, own, other, 1)
    slices = slice_metrics(labeled, own, 1)
    task_report = TaskReport(
        table, labeled, own, metrics, slices, other, compared.champion, compared.difference
    )
    gate = GateOutcome(
        False,
        "1",
        [RuleOutcome("throughput", True, "1.02"), RuleOutcome("slices", False, f"worse {HOSTILE}")],
        [CaseResult("two", "negation", "is not matched better", 0.2, 0.05)],
    )
    macro = {"macro PR-AUC": Interval(0.8, 0.7, 0.9)}
    training = {"loss": [(1, 0.7), (2, 0.5)], "learning_rate": [(1, 0.1)]}
    return VersionReport(
        "ads",
        "2",
        "challenger",
        "1",
        {"digest": "0" * 8},
        gate,
        macro,
        [task_report],
        training,
        "<b>none</b>",
    )


@pytest.fixture(scope="module")
def page(report: VersionReport) -> str:
    return report_page(report)


def test_values_are_escaped(page: str) -> None:
    assert "<script>alert" not in page and "<img" not in page and "<b>none" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page


def test_page_loads_nothing(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "default-src &#39;none&#39;" in page


def test_page_runs_its_own_style_and_script_alone(page: str) -> None:
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    for kind in ("style", "script"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy and not re.search(r" (style|on\w+)=", page)


def test_control_characters_and_direction_marks_are_spelled(page: str) -> None:
    assert "\u202e" not in page and "\x1b" not in page
    assert r"\u202e\u001b[31m" in page


def test_equal_reports_are_equal_pages(report: VersionReport, page: str) -> None:
    assert report_page(report) == page


def test_refusing_rules_stand_in_the_header(page: str) -> None:
    header = page[: page.index("<section>")]
    assert "Refused by the gate</b> against version 1" in header and "slices: worse" in header
    assert "throughput" not in header


def test_slices_start_with_the_lowest_pr_auc(page: str) -> None:
    section = page[page.index("Slices, worst first") : page.index("Drift of")]
    values = [
        float(value)
        for value in re.findall(r'<td class="number">[\d,]+</td>\s*<td class="number">(\d\.\d+)', section)
    ]
    assert values and values == sorted(values)


def test_long_texts_are_clipped(page: str) -> None:
    assert "long " * 10 in page and "long " * (MAX_TEXT_CHARS // 5 + 1) not in page


def test_charts_need_several_points(page: str) -> None:
    section = page[page.index("<h2>Training") : page.index("Slices, worst first")]
    assert section.count("<svg") == 1 and ">loss<" in section


def test_version_without_a_comparison_has_one_column(report: VersionReport) -> None:
    alone = replace(report.tasks[0], other_predictions=None, other_metrics=None, difference=None)
    page = report_page(replace(report, against=None, verdict=None, tasks=[alone]))
    assert "No gate verdict" in page and "No verdict is recorded" in page
    assert '<th class="number">difference</th>' not in page
