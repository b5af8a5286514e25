"""Validation of tables of one task, without Great Expectations unless a test asks for it."""

from collections import defaultdict
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.support.gate_cases import STRICT
from validation.gate import runner
from validation.gate.runner import GateRun, validate


class QuickDocs:
    """Data Docs that agree with the row masks and hold the verdict alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def judge(self, suite, frame):
        """Return a verdict that is equal to any other."""
        return defaultdict(lambda: ANY)

    def write(self, failures, notes) -> None:
        """Write index.html."""
        self.folder.mkdir(parents=True)
        title = f"<title>Data {'refused' if failures else 'accepted'}</title>"
        (self.folder / "index.html").write_text("\n".join([title, *failures, *notes]))


@pytest.fixture
def great_expectations():
    """Have the gate run Great Expectations: for the tests whose subject it is."""


@pytest.fixture(autouse=True)
def quick_docs(request, monkeypatch):
    """Replace the gate's Data Docs, which take a second or two a run."""
    if "great_expectations" not in request.fixturenames:
        monkeypatch.setattr(runner, "DataDocs", QuickDocs)


@pytest.fixture
def judge(tmp_path, task, write_rows):
    """Validate tables of the one task; the pages must be there whatever the verdict."""

    def run(*tables, judged=True, config=STRICT):
        report = validate(
            GateRun(
                write_rows({"query-ad": list(tables)}),
                [task],
                tmp_path / "out",
                tmp_path / "accepted",
                judged,
                config,
            )
        )
        assert report.data_docs.is_file()
        assert ("<title>Data accepted" in report.data_docs.read_text()) == report.passed
        return report

    return run
