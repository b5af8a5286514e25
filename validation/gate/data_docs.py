"""Great Expectations suites, and Data Docs that are safe to open offline.

Ad text is untrusted. Values are therefore escaped before Great Expectations stores them. Pages keep no script
and no outside address; a content security policy enforces both. The index page is rendered here, because
Great Expectations draws its own by script.
"""

from __future__ import annotations

import contextlib
import html
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from models.files import remove_tree
from pipeline.escaping import content_hash, escape_invisible
from validation.gate import gx_internals

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd

# of one value in a page or a message: enough to recognise a row, where the text may have 1 MB
MAX_SHOWN_CHARS = 80

NUM_EXAMPLES = 3  # failing rows shown for a check

_RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": NUM_EXAMPLES,
    "unexpected_index_column_names": ["row_id"],
}


@dataclass(frozen=True)
class _IndexEntry:
    """One suite on the index page."""

    title: str
    num_passed: int
    num_checks: int
    results_page: str
    expectations_page: str


def format_value(value: Any) -> str:
    """Format a value for messages and pages.

    Text is shortened, quoted and kept on one line; control and invisible characters are spelled out.
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(_shorten(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}… ({len(text):,} characters)"


def _escape_texts(value: Any) -> Any:
    """Shorten every text in a JSON value and escape its markup and unprintable characters."""
    if isinstance(value, str):
        return html.escape(repr(_shorten(value))[1:-1])
    if isinstance(value, dict):
        return {_escape_texts(key): _escape_texts(item) for key, item in value.items()}
    return [_escape_texts(item) for item in value] if isinstance(value, list | tuple) else value


def _head_markup() -> str:
    """Return the content security policy and the style that every page carries."""
    style = Path(__file__).with_name("data_docs.css").read_text("utf-8")
    policy = f"default-src 'none'; style-src {content_hash(style)}; base-uri 'none'; form-action 'none'"
    return f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}</style>'


def _write_page(path: Path, page: str) -> None:
    path.write_text(escape_invisible(page, keep="\n\t\r"), "utf-8")


@contextlib.contextmanager
def _output_on_stderr() -> Iterator[None]:
    """Send the output of Great Expectations to stderr: stdout is reserved for the command's JSON line."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class DataDocs:
    """Runner of suites in an in-memory Great Expectations context, and writer of its Data Docs.

    Args:
        folder: Folder that receives the pages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: dict[str, dict[str, bool]] = {}
        self._titles: dict[str, str] = {}
        with _output_on_stderr():
            import great_expectations as gx
            from great_expectations.data_context.types.base import (
                DataContextConfig,
                InMemoryStoreBackendDefaults,
            )

            self._context = gx.get_context(
                mode="ephemeral",
                project_config=DataContextConfig(
                    store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
                    data_docs_sites={"data_docs": gx_internals.data_docs_site(folder)},
                    analytics_enabled=False,
                    progress_bars=gx_internals.disabled_progress_bars(),
                ),
            )
            self._source = self._context.data_sources.add_pandas("rows")

    def run_suite(self, suite: gx.ExpectationSuite, frame: pd.DataFrame, title: str) -> dict[str, bool]:
        """Return True or False by the name of each check that `frame` passes or fails.

        The index page lists the suite by `title`.
        """
        import great_expectations as gx

        with _output_on_stderr():
            batch = self._source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
            definition = gx.ValidationDefinition(
                name=suite.name, data=batch, suite=self._context.suites.add(suite)
            )
            self._context.validation_definitions.add(definition)
            suite_result: Any = definition.run(
                batch_parameters={"dataframe": frame},
                result_format=_RESULT_FORMAT,
                run_id=gx.RunIdentifier(run_name="gate", run_time=datetime.now(UTC)),
            )
        passed = {
            result.expectation_config.meta["check"]: bool(result.success) for result in suite_result.results
        }
        self._results[suite.name] = passed
        self._titles[suite.name] = title
        return passed

    def write(self, failures: Sequence[str], notes: Sequence[str]) -> None:
        """Write index.html and the pages of every suite that has run."""
        with _output_on_stderr():
            gx_internals.transform_stored_results(self._context, _escape_texts)
            self._context.build_data_docs()
        remove_tree(self._folder / gx_internals.STATIC_FOLDER)
        for path in self._folder.rglob("*.html"):
            page = gx_internals.remove_active_markup(path.read_text("utf-8"))
            _write_page(path, gx_internals.insert_in_head(page, _head_markup()))
        _write_page(self._folder / "index.html", self._render_index(failures, notes))

    def _render_index(self, failures: Sequence[str], notes: Sequence[str]) -> str:
        suites = [
            _IndexEntry(
                self._titles[name],
                sum(passed.values()),
                len(passed),
                str(gx_internals.results_page(self._folder, name)),
                gx_internals.expectations_page(name),
            )
            for name, passed in self._results.items()
        ]
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
        )
        return environment.get_template("data_docs_index.html.j2").render(
            head=_head_markup(),
            verdict="refused" if failures else "accepted",
            suites=suites,
            lists=[("Refused because", failures), ("Worth knowing", notes)],
        )
