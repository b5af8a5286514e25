"""Undocumented parts of Great Expectations that the data gate relies on.

Every function names its reason. `tests/validation/gate/test_gx_internals.py` fails when an upgrade changes
one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from great_expectations.data_context.types.base import ProgressBarsConfig

TESTED_VERSION = "1.24"

STATIC_FOLDER = "static"  # of a Data Docs site: scripts, styles and pictures that its pages load

# Everything in a page that runs or is loaded from elsewhere. It cannot match data: values are escaped by
# then.
_ACTIVE_MARKUP = re.compile(
    r"<(script|style|footer)\b.*?</\1>|<(?:link|img)\b[^>]*>|"
    r"""\s(?:onclick|style)=(?:"[^"]*"|'[^']*')|url\([^)]*\)""",
    re.DOTALL,
)


def disabled_progress_bars() -> ProgressBarsConfig:
    """Return the context setting that draws no progress bars.

    Reason: the public API cannot turn them off, and they would fill the command's stderr.
    """
    from great_expectations.data_context.types.base import ProgressBarsConfig

    return ProgressBarsConfig(globally=False)


def data_docs_site(folder: Path) -> dict[str, Any]:
    """Return the settings of a Data Docs site in `folder`.

    Reason: the two switches that leave out advertisements and how-to buttons are undocumented. Variables are
    substituted in all settings, so a `$` of the path is escaped.
    """
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder).replace("$", r"\$"),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "show_cta_footer": False},
    }


def transform_stored_results(context: Any, transform: Callable[[Any], Any]) -> None:
    """Replace the `result` of every stored expectation result by `transform` of its JSON value.

    Reason: Data Docs write data values into pages unescaped (render/view/view.py lets Jinja escape .html
    templates; its own end in .j2), and there is no public hook between validation and rendering.
    """
    store = context.validation_results_store
    for key in store.list_keys():
        suite_result = store.get(key)
        for result in suite_result.results:
            result.result = transform(result.to_json_dict()["result"])
        store.set(key, suite_result)


def results_page(folder: Path, suite_name: str) -> Path:
    """Return the page of a suite's results, relative to the site's folder.

    Reason: its path holds the run's name and time, and no public function returns it.
    """
    return next(folder.glob(f"validations/{suite_name}/**/*.html")).relative_to(folder)


def expectations_page(suite_name: str) -> str:
    """Return the page of a suite's expectations, relative to the site's folder."""
    return f"expectations/{suite_name}.html"


def remove_active_markup(page: str) -> str:
    """Remove scripts, images, styles, click handlers and the footer from a rendered page.

    Reason: the pages load code from outside hosts, and data rooms are often offline.
    """
    return _ACTIVE_MARKUP.sub("", page)


def insert_in_head(page: str, markup: str) -> str:
    """Insert markup at the start of a rendered page's head."""
    return page.replace("<head>", f"<head>{markup}", 1)
