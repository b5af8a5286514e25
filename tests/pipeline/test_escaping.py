"""Texts of others are shown as text: in terminals, in Markdown, in pages."""

import json
import re

from pipeline.escaping import escape_invisible, escape_markdown, markdown_code

HOSTILE = [
    chr(code)
    for ends in ("00-1f", "7f-9f", "61c-61c", "200e-200f", "2028-202e", "2066-2069")
    for first, last in [ends.split("-")]
    for code in range(int(first, 16), int(last, 16) + 1)
]


def test_invisible_characters_are_spelled_and_others_kept() -> None:
    for character in HOSTILE:
        shown = escape_invisible(f"a{character}b")
        assert re.fullmatch(r"a\\([tnr]|u[0-9a-f]{4})b", shown), repr(character)
        assert escape_invisible(f"a{character}b", keep=character) == f"a{character}b"
    assert escape_invisible("é靴😀 a\u00a0b \\") == "é靴😀 a\u00a0b \\"


def test_escaped_json_has_the_same_meaning() -> None:
    value = {"".join(HOSTILE): ["\\" + character for character in HOSTILE]}
    assert json.loads(escape_invisible(json.dumps(value, ensure_ascii=False))) == value


def test_markdown_of_others_is_no_markup() -> None:
    for text, shown in {
        "# APPROVED FOR PRODUCTION\n": r"\# APPROVED FOR PRODUCTION\\n",
        "[x](http://e.vil)": r"\[x\]\(http\:\/\/e\.vil\)",
        "a|b": r"a\|b",
        "<img src=x>": r"\<img src\=x\>",
        "_a_ *b* `c` ~d~ \\": r"\_a\_ \*b\* \`c\` \~d\~ \\",
        "en-US 靴": "en-US 靴",
        "a\u202eb": r"a\\u202eb",
    }.items():
        assert escape_markdown(text) == shown


def test_code_spans_end_where_their_text_does() -> None:
    assert markdown_code("/a/b") == "`/a/b`"
    assert markdown_code("a`b") == "`` a`b ``"
    assert markdown_code("a``\n") == "``` a``\\n ```"
