"""Report page without a browser: escaping, policy, structure and size."""

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from pipeline.evaluation.html_report import MAX_TEXT_CHARS, report_page
from pipeline.evaluation.report_view import MAX_ERRORS, VersionReport
from pipeline.evaluation.version_report import LexicalFloor, TaskReport, VersionMetrics
from tests.support.reports import task_report, version_report

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Structure(HTMLParser):
    """Elements of a page with their attributes, and problems of nesting."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.problems: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"{tag} at {self.getpos()}")

    def values(self, attribute: str) -> Iterator[str]:
        """Yield the values of an attribute."""
        yield from (attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes)


@pytest.fixture(scope="module")
def report() -> VersionReport:
    return version_report([task_report("two", 120), task_report("three", 120)])


@pytest.fixture(scope="module")
def page(report: VersionReport) -> str:
    return report_page(report)


@pytest.fixture(scope="module")
def page_alone(report: VersionReport) -> str:
    return report_page(without_comparison(report))


def without_comparison(report: VersionReport) -> VersionReport:
    """Return a report of a version that is alone, without verdict, floor, profile and speed."""
    tasks = [replace(task, other_predictions=None, comparison=None) for task in report.measured.tasks]
    measured = VersionMetrics(tuple(tasks), ("four",), report.measured.macro_pr_auc, None)
    return replace(
        report,
        against=None,
        verdict=None,
        measured=measured,
        floor=LexicalFloor({}, None),
        drift=None,
        speed_ratio=None,
    )


def text(page: str, section: str) -> str:
    """Return the text of the section with an id."""
    content = page[page.index(f'id="{section}"') :]
    return html.unescape(re.sub(r"<[^>]*>", " ", content[: content.index("</section>")]))


def test_values_are_escaped(page: str) -> None:
    assert "<script>document" not in page and "<img" not in page and "<i>red" not in page
    assert page.count("<script>") == 1 and page.count("<style>") == 1
    assert "&lt;script&gt;document.title" in page


def test_page_loads_nothing(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "default-src &#39;none&#39;" in page


def test_page_runs_its_own_style_and_script_alone(page: str) -> None:
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    for kind in ("style", "script"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    names = {name for _, attributes in Structure(page).elements for name in attributes}
    assert not {name for name in names if name == "style" or name.startswith("on")}


def test_control_characters_and_direction_marks_are_spelled(page: str) -> None:
    assert "\u202e" not in page and "\x1b" not in page
    assert r"\u202e\u001b[31m" in page


def test_equal_reports_are_equal_pages(report: VersionReport, page: str) -> None:
    assert report_page(report) == page


def test_elements_are_nested_and_links_lead_somewhere(page: str, page_alone: str) -> None:
    for structure in (Structure(page), Structure(page_alone)):
        ids = list(structure.values("id"))
        assert structure.problems == []
        assert sorted(ids) == sorted(set(ids))
        links = {link for link in structure.values("href") if link.startswith("#")}
        assert links >= {"#task-two", "#task-three", "#gate", "#version"}
        assert {link[1:] for link in links} <= set(ids)


def test_all_sections_are_shown_without_the_script(page: str) -> None:
    hidden = [attributes for _, attributes in Structure(page).elements if "hidden" in attributes]
    assert [attributes.get("id") for attributes in hidden] == ["filters"]


def shown_text(page: str) -> str:
    """Return the text of a page or of a part of it."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def test_overview_answers_before_the_tabs(page: str) -> None:
    overview = page[page.index("<main>") : page.index('id="tabs"')]
    shown = shown_text(overview)
    for words in (
        "Is it better? +0.100 ▲ better",
        "Where is it worse?",
        "Can I promote it? No ✗ refused by the gate",
        "1 of 2 rules passed",
        "slices : worse",
        "1.02× speed of version 1",
    ):
        assert words in shown
    assert "throughput" not in shown, "passed rules are on the tab of the gate"
    assert overview.count('<svg class="bars"') == 8, "two tasks, four metrics"
    assert overview.count('<g class="floor">') == 1, "one metric has a floor"


def test_version_alone_has_no_columns_of_another(page_alone: str) -> None:
    shown = shown_text(page_alone)
    for words in (
        "There is no other version to compare it with",
        "Not judged",
        "speed not measured",
        "not recorded for these rows",
        "No verdict is recorded",
        "carries no profile",
        "or are missing: four",
    ):
        assert words in shown
    assert 'data-name="difference"' not in page_alone and '<g class="other">' not in page_alone


def test_slices_start_with_the_lowest_pr_auc(page: str) -> None:
    section = page[page.index('id="task-two"') : page.index('id="task-three"')]
    found = re.findall(
        r'<tr[^>]*><th scope="row">\w+ ?\w* <b>.*?data-name="PR-AUC" class="number">([\d.]+) ', section
    )
    values = [float(value) for value in found]
    assert len(values) > 3 and values == sorted(values)


def test_drift_names_moved_features(page: str) -> None:
    shown = text(page, "task-two")
    assert "words:query" in shown and "0.400" in shown and "1 of 2 features are steady" in shown
    assert "market" in text(page, "version") and "0.200" in text(page, "version")


def test_long_texts_are_clipped(page: str) -> None:
    assert "long " * 10 in page and "long " * (MAX_TEXT_CHARS // 5 + 1) not in page


def test_charts_need_several_points(page: str) -> None:
    section = page[page.index('id="version"') :]
    assert section.count("<svg") == 2 and ">loss<" in section and ">learning_rate<" not in section


def test_page_of_forty_tasks_and_long_texts_is_bounded(
    report: VersionReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = report.measured.tasks[0]
    longest = (
        "M" + "L 100.123456 100.123456 " * 1_200
    )  # test_svg_charts.py bounds a chart by 30,000 characters
    charts = {name: f'<svg><path d="{longest}"/></svg>' for name in ("relevant", "defects", "reliability")}
    monkeypatch.setattr("pipeline.evaluation.report_view.curve_charts", lambda *_: charts)
    columns = {"query": 4_000, "ad_title": 16_000, "ad_description": 40_000, "market": 60}
    table = task.table
    for name, length in columns.items():
        texts = pa.array([chr(0x202E) * 100 + '"' * length] * len(table), pa.string())
        table = table.set_column(table.schema.get_field_index(name), name, texts)

    def long_task(number: int) -> TaskReport:
        known = task.rows.task.model_copy(update={"name": f"task-{number}".ljust(63, "x")})
        slices = tuple(replace(part, name="<" * 60) for part in task.slices * 30)
        return replace(task, table=table, rows=replace(task.rows, task=known), slices=slices)

    tasks = tuple(long_task(number) for number in range(40))
    page = report_page(replace(report, measured=replace(report.measured, tasks=tasks)))
    assert len(page) < 8_000_000
    assert 40 < page.count('<li data-market="') <= MAX_ERRORS
