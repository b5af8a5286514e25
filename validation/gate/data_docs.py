"""Great Expectations at work: one verdict a suite, and the Data Docs as pages that stand on their own.

Great Expectations 1.24 writes data values into its pages unescaped (render/view/view.py has Jinja escape
.html templates; its own end in .j2), loads scripts and styles from outside hosts, and draws the list on its
index page by script. Ad text is written by strangers, and data rooms are often offline. So values are escaped
before they are stored, pages keep no script and no outside address, a content security policy tells the
browser so, and the index is a page of our own.
"""

from __future__ import annotations

import contextlib
import html
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage.filesystem import remove_tree

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

# Whatever runs or has an address elsewhere. No data can be in a match: values are escaped by then.
_ACTIVE = re.compile(
    r'<script\b.*?</script>|<(?:link|img)\b[^>]*>|<footer\b.*?</footer>|\sonclick="[^"]*"|url\([^)]*\)',
    re.DOTALL,
)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _head() -> str:
    """Return what each page's head holds: a policy that forbids everything from elsewhere, and the style."""
    style = Path(__file__).with_name("data_docs.css").read_text("utf-8")
    return f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{style}</style>'


def readable(value: Any) -> str:
    """A value as messages and pages show it: short, on one line, text quoted with control and invisible
    characters spelled out.
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(_clip(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _clip(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}… ({len(text):,} characters)"


def _inert(value: Any) -> Any:
    """The same json value with every text in it shortened, printable and free of markup."""
    if isinstance(value, str):
        return html.escape(repr(_clip(value))[1:-1])
    if isinstance(value, dict):
        return {_inert(key): _inert(item) for key, item in value.items()}
    return [_inert(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Great Expectations prints goes to stderr: stdout belongs to the command's json line."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class DataDocs:
    """Runs suites in a Great Expectations context that lives in memory, and writes its Data Docs into one
    folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verdicts: dict[str, dict[str, bool]] = {}
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
        index = {"class_name": "DefaultSiteIndexBuilder", "show_cta_footer": False}
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": store,
            "site_index_builder": index,
        }
        with _quiet():
            import great_expectations as gx
            from great_expectations.data_context.types.base import (
                DataContextConfig,
                InMemoryStoreBackendDefaults,
                ProgressBarsConfig,
            )

            in_memory = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
            self._context = gx.get_context(
                mode="ephemeral",
                project_config=DataContextConfig(
                    store_backend_defaults=in_memory,
                    data_docs_sites={"data_docs": site},
                    analytics_enabled=False,
                    progress_bars=ProgressBarsConfig(globally=False),
                ),
            )
            self._source = self._context.data_sources.add_pandas("rows")

    def judge(self, suite: gx.ExpectationSuite, frame: pd.DataFrame) -> dict[str, bool]:
        """Whether `frame` keeps each check of `suite`, by the check's name. The result is kept for the
        pages.
        """
        import great_expectations as gx
        from great_expectations.core.run_identifier import RunIdentifier

        with _quiet():
            batch = self._source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
            definition = gx.ValidationDefinition(
                name=suite.name, data=batch, suite=self._context.suites.add(suite)
            )
            self._context.validation_definitions.add(definition)
            run_id = RunIdentifier(run_name="gate", run_time=datetime.now(UTC))
            result: Any = definition.run(
                batch_parameters={"dataframe": frame}, result_format=_RESULT_FORMAT, run_id=run_id
            )
        verdict = {one.expectation_config.meta["check"]: bool(one.success) for one in result.results}
        self._verdicts[suite.name] = verdict
        return verdict

    def write(self, failures: Sequence[str], notes: Sequence[str]) -> None:
        """Write index.html and the pages of every suite judged so far."""
        with _quiet():
            self._make_results_inert()
            self._context.build_data_docs()
        remove_tree(self._folder / "static")
        for page in self._folder.rglob("*.html"):
            page.write_text(
                _ACTIVE.sub("", page.read_text("utf-8")).replace("<head>", f"<head>{_head()}", 1), "utf-8"
            )
        (self._folder / "index.html").write_text(self._index(failures, notes), "utf-8")

    def _make_results_inert(self) -> None:
        store = self._context.validation_results_store
        for key in store.list_keys():
            suite_result: Any = store.get(key)
            for result in suite_result.results:
                result.result = _inert(result.to_json_dict()["result"])
            store.set(key, suite_result)

    def _index(self, failures: Sequence[str], notes: Sequence[str]) -> str:
        verdict = "refused" if failures else "accepted"
        lines = [
            (
                f'<!DOCTYPE html><html><head><meta charset="UTF-8">{_head()}<title>Data '
                f"{verdict}</title></head><body>"
            ),
            f'<h1>Data <span class="{verdict}">{verdict}</span></h1>',
            "<table><tr><th>suite</th><th>checks passed</th><th>pages</th></tr>",
        ]
        for name, checks in self._verdicts.items():
            results = next(self._folder.glob(f"validations/{name}/**/*.html")).relative_to(self._folder)
            links = f'<a href="{results}">results</a> <a href="expectations/{name}.html">checks</a>'
            lines.append(
                f"<tr><td>{name}</td><td>{sum(checks.values())} of {len(checks)}</td><td>{links}</td></tr>"
            )
        lines.append("</table>")
        for title, texts in (("Refused because", failures), ("Worth knowing", notes)):
            if texts:
                lines += [
                    f"<h4>{title}</h4><ul>",
                    *(f"<li>{html.escape(text)}</li>" for text in texts),
                    "</ul>",
                ]
        return "\n".join([*lines, "</body></html>"])
