"""The report page in a browser, with an installed Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.html_report import report_page
from tests.support.reports import task_report, version_report

ERRORS = "#task-{} .errors li"


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "version-2.html"
    report = version_report([task_report("two"), task_report("three")])
    path.write_text(report_page(report), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=chromium, args=arguments)


def open_panels(page: Any) -> list[str]:
    """Return the ids of the panels that are visible."""
    return [panel.get_attribute("id") for panel in page.locator(".panel").all() if panel.is_visible()]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_tabs_and_filters_work_without_errors_or_requests(
    browser: Any, page_path: Path, scheme: str, width: int
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_path.as_uri())
    assert open_panels(page) == ["task-two"]
    tabs = page.get_by_role("tab")
    assert tabs.count() == 4 and page.get_by_role("tabpanel").count() == 1
    tabs.nth(0).focus()
    for key, panel in (
        ("ArrowRight", "task-three"),
        ("End", "version"),
        ("ArrowRight", "task-two"),
        ("ArrowLeft", "version"),
        ("Home", "task-two"),
    ):
        page.keyboard.press(key)
        page.wait_for_function("id => !document.getElementById(id).hidden", arg=panel)
        assert open_panels(page) == [panel]
        focused = page.evaluate("document.activeElement.getAttribute('aria-controls')")
        assert focused == panel and page.locator("[aria-selected=true]").count() == 1
    for name, value in (("market", "de"), ("label", "bad")):
        page.select_option(f"select[name={name}]", value)
        rows = page.locator(ERRORS.format("two")).all()
        shown = [row.get_attribute(f"data-{name}") for row in rows if row.is_visible()]
        assert shown and set(shown) == {value}
    assert page.inner_text("#shown") == f"{len(shown)} of {len(rows)} errors shown"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.title() == "planted version 2 beside version 1" and not messages
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_address_keeps_tab_and_filters(browser: Any, page_path: Path) -> None:
    page = browser.new_page()
    page.goto(page_path.as_uri())
    page.get_by_role("tab").nth(1).click()
    page.select_option("select[name=market]", "de")
    page.wait_for_function("location.hash.includes('market')")
    assert page.evaluate("location.hash") == "#tab=task-three&market=de"
    reopened = browser.new_page()
    reopened.goto(page.url)
    assert open_panels(reopened) == ["task-three"]
    assert reopened.locator("select[name=market]").input_value() == "de"
    reopened.locator(".overview a").first.click()
    reopened.wait_for_function("location.hash === '#tab=task-two&market=de'")
    assert open_panels(reopened) == ["task-two"]
    reopened.goto(f"{page_path.as_uri()}#tab=task-nine&market=%3Cb%3E")
    reopened.reload()
    assert open_panels(reopened) == ["task-two"]
    assert reopened.locator("select[name=market]").input_value() == ""


def test_print_and_pages_without_script_show_all_sections(browser: Any, page_path: Path) -> None:
    everything = ["task-two", "task-three", "gate", "version"]
    page = browser.new_page(java_script_enabled=False)
    page.goto(page_path.as_uri())
    assert open_panels(page) == everything
    assert not page.locator("#filters").is_visible()
    printed = browser.new_page()
    printed.goto(page_path.as_uri())
    printed.emulate_media(media="print")
    assert open_panels(printed) == everything
    assert not printed.locator("#tabs").is_visible()
