"""Validation of tables of one task."""

import pytest

from tests.support.gate_cases import STRICT
from validation.gate.runner import GateRun, validate


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
