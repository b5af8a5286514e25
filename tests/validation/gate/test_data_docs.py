"""Formatting of values for messages and pages."""

import math

import pytest

from validation.gate.data_docs import MAX_SHOWN_CHARS, format_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        ("", "''"),
        ("null", "'null'"),
        (3, "3"),
        (0.5, "0.5"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ("a\nb\0\u202e", r"'a\nb\x00\u202e'"),
        ("ランニング", "'ランニング'"),
    ],
)
def test_format_value_quotes_text_and_shows_invisible_characters(value, shown):
    assert format_value(value) == shown


def test_format_value_shortens_long_text_and_states_its_length():
    shown = format_value("\0" * 1_000_000)
    assert shown.endswith("(1,000,000 characters)'") and len(shown) < 5 * MAX_SHOWN_CHARS
