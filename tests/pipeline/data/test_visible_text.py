"""Blank texts are found equally by rows and by columns, in pyarrow and in Python."""

import re
import sys

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.visible_text import is_blank, mark_blank, visible_pattern
from tests.support.blank_texts import BLANK_TEXTS

VISIBLE_TEXTS = (
    "a",
    "é",
    "e\u0301",
    "靴",
    "\u0915\u093f",
    "7",
    "!",
    "😀",
    "1\ufe0f\u20e3",
    " \u200bx",
    "\x00x",
)


def test_text_is_blank_without_a_visible_character() -> None:
    texts = [*BLANK_TEXTS, *VISIBLE_TEXTS]
    expected = [text in BLANK_TEXTS for text in texts]
    assert [is_blank(text) for text in texts] == expected
    assert mark_blank(pa.array([*texts, None])).tolist() == [*expected, False]
    assert mark_blank(pa.chunked_array([texts, [None, " "]])).tolist() == [*expected, False, True]


def test_visible_pattern_is_equal_in_re2_and_python() -> None:
    # Great Expectations may match with either
    codes = (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE1010), sys.maxunicode)
    texts = [chr(code) for code in codes]
    by_re2 = pc.match_substring_regex(pa.array(texts), visible_pattern()).to_pylist()
    by_python = [re.search(visible_pattern(), text) is not None for text in texts]
    assert by_re2 == by_python
    assert not any(visible for text, visible in zip(texts, by_re2, strict=True) if text.isspace())
    hidden_letters = [
        text for text, visible in zip(texts, by_re2, strict=True) if text.isalnum() and not visible
    ]
    assert hidden_letters == ["\u115f", "\u1160", "\u3164", "\uffa0"], "the four Hangul fillers"
