"""The report page in a browser, with an installed Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.evaluation.comparison import compare_task, labeled_rows
from pipeline.evaluation.html_report import TaskReport, VersionReport, report_page
from pipeline.evaluation.results import GateOutcome, Interval
from pipeline.evaluation.task_metrics import Predictions, metrics_with_intervals, slice_metrics
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows

HOSTILE = '<script>document.title="taken"</script><img src=x onerror="document.title=1">'
VERDICT = {
    "against": "1",
    "passed": False,
    "rules": [
        {"rule": "throughput", "passed": True, "reason": "1.02"},
        {"rule": "behaviour", "passed": False, "reason": "two, negation: 0.2"},
    ],
    "behaviour": [{"task": "two", "case": "negation", "told": "not believed", "value": 0.2, "at_most": 0.05}],
}


def noisy_predictions(
    random: np.random.Generator, label_N: np.ndarray, num_labels: int, noise: float
) -> Predictions:
    """Return predictions that follow the labels, with noise."""
    score_NC = np.eye(num_labels)[label_N] + noise * random.random((len(label_N), num_labels))
    probability_NC = score_NC / score_NC.sum(axis=1, keepdims=True)
    probability_N = probability_NC[:, 1:].sum(axis=1)
    return Predictions(probability_N, probability_NC, np.where(probability_N > 0.5, "relevant", "irrelevant"))


def hostile_task_report(name: str, labels: tuple[str, ...], random: np.random.Generator) -> TaskReport:
    """Return the report of one task whose ads contain HTML."""
    rows = planted_rows(name, 300, 1)
    for number, row in enumerate(rows):
        row["market"] = "de" if number % 3 == 0 else "us"
        row["ad_title"] += HOSTILE
    task = Task(name=name, labels=labels, relevant_from=1, template="{query} {ad_title}")
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    labeled = labeled_rows(task, table)
    predictions = noisy_predictions(random, labeled.label_N, len(labels), noise=4.0)
    other = noisy_predictions(random, labeled.label_N, len(labels), noise=6.0)
    metrics, _ = metrics_with_intervals(labeled, predictions, 1)
    slices = slice_metrics(labeled, predictions, 1)
    compared = compare_task(labeled, predictions, other, 1)
    return TaskReport(
        table, labeled, predictions, metrics, slices, other, compared.champion, compared.difference
    )


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    tasks = {"two": ("bad", "good"), "three": ("bad", "fair", "good")}
    report = VersionReport(
        model="planted",
        version="2",
        standing="challenger",
        against="1",
        facts={"bundle sha256": "0" * 64},
        verdict=GateOutcome.from_json(VERDICT),
        macro={"macro PR-AUC": Interval(0.8, 0.7, 0.9)},
        tasks=[hostile_task_report(name, labels, random) for name, labels in tasks.items()],
        training={
            "loss": [(step, 1 / step) for step in range(1, 40)],
            "valid_macro_pr_auc": [(10, 0.6), (20, 0.7)],
            "learning_rate": [],
        },
        drift="steady <b>everywhere",
    )
    path = tmp_path_factory.mktemp("report") / "version-2.html"
    path.write_text(report_page(report), encoding="utf-8")
    return path


def test_ad_text_is_escaped(page_path: Path) -> None:
    text = page_path.read_text()
    assert "<script>document" not in text and "<img" not in text and "&lt;script&gt;document.title" in text
    assert "steady &lt;b&gt;everywhere" in text
    assert text.count("<script>") == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=chromium, args=arguments)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_filters_work_without_errors_or_requests(browser: Any, page_path: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_path.as_uri())
    rows = page.locator("#errors tbody tr")
    visible = page.locator("#errors tbody tr:not([hidden])")
    assert rows.count() == visible.count() == 100
    for name, value in (("task", "three"), ("market", "de"), ("label", "bad")):
        page.select_option(f"select[name={name}]", value)
        shown = [row.get_attribute(f"data-{name}") for row in visible.all()]
        assert shown and set(shown) == {value}
    assert page.inner_text("#shown") == f"{visible.count()} of 100 shown"
    assert not page.locator("h3", has_text="two").first.is_visible()
    assert page.locator("h3", has_text="three").first.is_visible()
    page.select_option("select[name=task]", "")
    assert {row.get_attribute("data-task") for row in visible.all()} <= {"two", "three"}
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.title() == "planted version 2" and not messages
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
