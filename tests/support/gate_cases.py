"""Gate configs, and bad values with the messages that they cause."""

import pytest

from pipeline.config.gates import GateConfig
from pipeline.errors import DataRefusedError
from validation.gate.report import check_report

NAN, INF = float("nan"), float("inf")
STRICT = GateConfig(max_quarantined_share=0.0, max_reason_share=0.0)
LENIENT = GateConfig(max_quarantined_share=0.9, max_reason_share=0.9)


def refusal_of(report) -> str:
    """Return the error message of a report that did not pass."""
    with pytest.raises(DataRefusedError) as error:
        check_report(report)
    assert error.value.exit_code == 1
    assert str(report.data_docs) in str(error.value)
    assert "relevance validate" in str(error.value)
    return str(error.value)


BAD_VALUES = [  # column, values, bad rows, fragment of the message
    ("weight", [NAN, 1, 1, 1, 1, 1], [0], "nan"),
    ("weight", [1, INF, 1, -INF, 1, 1], [1, 3], "inf"),
    ("query", ["a", None, "b", "c", "d", "e"], [1], "null"),
    ("query", ["a", "b", "c", "d", "e", "\u200b \t"], [5], r"'\u200b \t'"),
    ("ad_title", ["a", "b", "c", "", "e", "f"], [3], "''"),
    ("ad_description", [None, None, None, "x" * 1_048_577, None, None], [3], "(1,048,577 characters)"),
    ("ad_keyword", ["a\0b", None, None, None, None, None], [0], r"'a\x00b'"),
    ("label", [0, 1, 2, 3, -1, 0], [3, 4], "holds -1"),
    ("label", [0, 1, None, 1, 1, 0], [2], "null"),
]
