"""A query has one side, for ever."""

import random
import sys
import unicodedata

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.data.splits import normalise_query, query_positions, split_of, split_rows

CONFIG = SplitConfig(valid_share=0.1, test_share=0.2)
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
CASES = (str.upper, str.lower, str.title, str.casefold, str.swapcase)


def cased_letters() -> list[str]:
    """Every letter that has another case, except the dotless i: its capital is the capital of i."""
    letters = (chr(code) for code in range(sys.maxunicode + 1))
    return [c for c in letters if (c.upper() != c or c.lower() != c) and c != "ı"]


def test_a_query_is_one_in_every_case() -> None:
    for letter in cased_letters():
        query = f"a{letter} {letter}b"
        for change in CASES:
            assert normalise_query(change(query)) == normalise_query(query), (hex(ord(letter)), change)


def test_a_query_is_one_in_every_unicode_form() -> None:
    draw = random.Random(0)
    characters = [chr(code) for code in draw.sample([*range(0xD800), *range(0xE000, 0x30000)], 20_000)]
    characters += [chr(code) for code in range(0x1F00, 0x2000)]
    for character in characters:
        query = f"a{character}\u0301b"
        for form in FORMS:
            assert normalise_query(unicodedata.normalize(form, query)) == normalise_query(query), (
                hex(ord(character)),
                form,
            )


SAME = [
    ("red shoes", "  Red\tSHOES\n"),
    ("red shoes", "red\u00a0\u3000shoes"),
    ("café", "cafe\u0301"),
    ("straße", "STRASSE"),
    ("ﬁlter", "filter"),
    ("ＴＶ　４Ｋ", "tv 4k"),
    ("ΐ", "Ϊ́"),
    ("ｶﾞ", "ガ"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_query_are_on_one_side(one: str, other: str) -> None:
    here, there = query_positions([one, other])
    assert here == there


def test_different_queries_have_different_places() -> None:
    queries = ["red shoes", "redshoes", "red shoe", "red-shoes", "réd shoes", "shoes red", "", "0"]
    assert len(set(query_positions(queries).tolist())) == len(queries)


def test_the_place_of_a_query_is_the_same_for_ever() -> None:
    # written down once; if this fails, every model trained before was tested on other rows
    places = {"red shoes": 0.9616383040141322, "Größe 42": 0.20148294476717926, "": 0.21564110227279376}
    assert dict(zip(places, query_positions(places).tolist(), strict=True)) == places


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.2), (0.05, 0.5), (0.3, 0.01)])
def test_shares_are_met_on_twenty_thousand_queries(valid: float, test: float) -> None:
    sides = split_rows([f"query {n}" for n in range(20_000)], SplitConfig(valid_share=valid, test_share=test))
    found = [float(np.mean(sides == side)) for side in SPLITS]
    assert found == pytest.approx([1 - valid - test, valid, test], abs=0.01)


def test_a_query_never_moves_when_rows_are_added_or_reordered() -> None:
    queries = [f"query {n % 700}" for n in range(1_000)]
    before = dict(zip(queries, split_rows(queries, CONFIG), strict=True))
    more = queries + [f"new {n}" for n in range(1_000)]
    random.Random(0).shuffle(more)
    after = dict(zip(more, split_rows(more, CONFIG), strict=True))
    assert {query: after[query] for query in before} == before


def test_the_test_side_stays_when_only_the_valid_share_changes() -> None:
    queries = [f"query {n}" for n in range(2_000)]
    one, other = (
        split_rows(queries, SplitConfig(valid_share=share, test_share=0.2)) for share in (0.05, 0.4)
    )
    assert np.array_equal(one == "test", other == "test")
    assert not np.array_equal(one == "valid", other == "valid")


def test_rows_are_on_the_sides_of_their_queries() -> None:
    queries = ["a", "b", "A ", "c", "b", ""]
    assert split_rows(queries, CONFIG).tolist() == [split_of(query, CONFIG) for query in queries]
    assert split_rows([], CONFIG).tolist() == []


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_shares_that_leave_nothing_to_train_on_are_refused(valid: float, test: float) -> None:
    with pytest.raises(ValidationError, match="nothing would be left to train on"):
        SplitConfig(valid_share=valid, test_share=test)
