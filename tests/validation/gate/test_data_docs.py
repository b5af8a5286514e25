"""Values shown to people are short, on one line and say what they are."""

import math

import pytest

from validation.gate.data_docs import MAX_SHOWN_CHARS, readable


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
def test_value_is_shown_as_what_it_is(value, shown):
    assert readable(value) == shown


def test_long_text_is_cut_and_its_length_told():
    shown = readable("\0" * 1_000_000)
    assert shown.endswith("(1,000,000 characters)'") and len(shown) < 5 * MAX_SHOWN_CHARS
