"""Cleaning of product texts."""

import pytest

from pipeline.data.importers.text_cleaning import (
    build_description,
    build_title,
    clean_line,
    clean_lines,
    decode_text,
)
from pipeline.errors import DamagedInputError
from tests.support.blank_texts import BLANK_TEXTS


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("red\x00shoe", "red shoe"),
        ("  red\t \r\n shoe\u3000", "red shoe"),
        ("ふちなしメガネ", "ふちなしメガネ"),
        ("👩‍💻 <b>&amp;</b>", "👩‍💻 <b>&amp;</b>"),
        ("\x00\x1f\x85 ", None),
        ("", None),
        (None, None),
    ],
)
def test_clean_line_removes_control_characters_and_extra_white_space(
    raw: str | None, clean: str | None
) -> None:
    assert clean_line(raw) == clean


def test_text_without_visible_characters_is_no_text() -> None:
    for clean in (clean_line, clean_lines, build_title):
        assert {clean(text) for text in BLANK_TEXTS} == {None}


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<p>one</p><br/>two</br>three< br />four", "one\ntwo\nthree\nfour"),
        ("<ul class='x'><li>one</li><LI>two</LI></ul>", "one\ntwo"),
        ("10 m<sup>2</sup> of <b>felt</b>", "10 m2 of felt"),
        ("first bullet\nsecond bullet\n", "first bullet\nsecond bullet"),
        ("Liv&apos;s AT&amp;T &#128154; &lt;b&gt;", "Liv's AT&T 💚 <b>"),
        ("rock&notes AT&T &nosuch;", "rock&notes AT&T &nosuch;"),
        ("<初回限定盤> <CD+DVD> 3 < 4 > 2", "<初回限定盤> <CD+DVD> 3 < 4 > 2"),
        ("<p>\x00</p>", None),
    ],
)
def test_html_is_removed_and_other_angle_brackets_stay(raw: str, clean: str | None) -> None:
    assert clean_lines(raw) == clean


def test_title_is_one_line() -> None:
    assert build_title("Red<br>shoe &amp; lace\n") == "Red shoe & lace"


@pytest.mark.parametrize(
    ("facts", "bodies", "description"),
    [
        (("Nike", "Red"), ("<p>light</p>", "one\ntwo"), "Nike, Red\nlight"),
        (("Nike", None), (None, "one\ntwo"), "Nike\none\ntwo"),
        ((None, "Red"), ("<br>", "one"), "Red\none"),
        ((None, " "), (None, "one"), "one"),
        (("Nike", "Red"), (None, ""), "Nike, Red"),
        ((None, None), (None, None), None),
    ],
)
def test_description_is_facts_then_the_first_text(
    facts: tuple[str | None, ...], bodies: tuple[str | None, ...], description: str | None
) -> None:
    assert build_description(facts, bodies) == description


def test_surrogates_are_paired_or_replaced() -> None:
    pair = "\ud83d\udc9a".encode("utf-8", "surrogatepass")
    assert decode_text(pair + b" ok", "here") == "💚 ok"
    assert decode_text(b"a" + pair[:3] + b"b", "here") == "a\ufffdb"


def test_invalid_utf_8_error_names_its_place() -> None:
    with pytest.raises(DamagedInputError, match="column query of x is not UTF-8 .*at byte 3"):
        decode_text("caf\xe9".encode("latin-1"), "column query of x")
