"""Fixtures that validate tables of one task, without Great Expectations unless a test asks for it."""

import pytest

from tests.support.gate_cases import STRICT
from tests.support.quick_docs import QuickDocs
from validation.gate import runner
from validation.gate.runner import GateRun, validate


@pytest.fixture
def great_expectations():
    """Let the gate run Great Expectations, for tests of it."""


@pytest.fixture(autouse=True)
def quick_docs(request, monkeypatch):
    """Replace the gate's Data Docs, which take a second or two per run."""
    if "great_expectations" not in request.fixturenames:
        monkeypatch.setattr(runner, "DataDocs", QuickDocs)


@pytest.fixture
def validate_tables(tmp_path, task, write_rows):
    """Validate tables of one task; the Data Docs must exist whatever the verdict."""

    def run(*tables, labels_required=True, config=STRICT):
        report = validate(
            GateRun(
                write_rows({"query-ad": list(tables)}),
                [task],
                tmp_path / "out",
                tmp_path / "accepted",
                labels_required,
                config,
            )
        )
        assert report.data_docs.is_file()
        assert ("<title>Data accepted" in report.data_docs.read_text()) == report.passed
        return report

    return run
