"""Splits: all spellings of a query have the same split, which never changes."""

import random
import sys
import unicodedata

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.data.splits import assign_split, assign_splits, normalize_query, query_positions

CONFIG = SplitConfig(valid_share=0.1, test_share=0.2)
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
CASES = (str.upper, str.lower, str.title, str.casefold, str.swapcase)


def cased_letters() -> list[str]:
    """Every letter that has another case, except the dotless i: its capital is the capital of i."""
    letters = (chr(code) for code in range(sys.maxunicode + 1))
    return [c for c in letters if (c.upper() != c or c.lower() != c) and c != "ı"]


def test_query_is_the_same_in_every_case() -> None:
    for letter in cased_letters():
        query = f"a{letter} {letter}b"
        for change in CASES:
            assert normalize_query(change(query)) == normalize_query(query), (hex(ord(letter)), change)


def test_query_is_the_same_in_every_unicode_form() -> None:
    draw = random.Random(0)
    characters = [chr(code) for code in draw.sample([*range(0xD800), *range(0xE000, 0x30000)], 20_000)]
    characters += [chr(code) for code in range(0x1F00, 0x2000)]
    for character in characters:
        query = f"a{character}\u0301b"
        for form in FORMS:
            assert normalize_query(unicodedata.normalize(form, query)) == normalize_query(query), (
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
def test_spellings_of_a_query_share_its_split(one: str, other: str) -> None:
    first, second = query_positions([one, other])
    assert first == second


def test_different_queries_have_different_positions() -> None:
    queries = ["red shoes", "redshoes", "red shoe", "red-shoes", "réd shoes", "shoes red", "", "0"]
    assert len(set(query_positions(queries).tolist())) == len(queries)


def test_query_positions_never_change() -> None:
    # recorded values; other ones would move rows between the splits of existing models
    positions = {"red shoes": 0.9616383040141322, "Größe 42": 0.20148294476717926, "": 0.21564110227279376}
    assert dict(zip(positions, query_positions(positions).tolist(), strict=True)) == positions


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.2), (0.05, 0.5), (0.3, 0.01)])
def test_split_shares_match_the_config(valid: float, test: float) -> None:
    splits = assign_splits(
        [f"query {n}" for n in range(20_000)], SplitConfig(valid_share=valid, test_share=test)
    )
    shares = [float(np.mean(splits == split)) for split in SPLITS]
    assert shares == pytest.approx([1 - valid - test, valid, test], abs=0.01)


def test_split_of_a_query_survives_new_and_reordered_rows() -> None:
    queries = [f"query {n % 700}" for n in range(1_000)]
    before = dict(zip(queries, assign_splits(queries, CONFIG), strict=True))
    more = queries + [f"new {n}" for n in range(1_000)]
    random.Random(0).shuffle(more)
    after = dict(zip(more, assign_splits(more, CONFIG), strict=True))
    assert {query: after[query] for query in before} == before


def test_test_split_is_independent_of_the_valid_share() -> None:
    queries = [f"query {n}" for n in range(2_000)]
    one, other = (
        assign_splits(queries, SplitConfig(valid_share=share, test_share=0.2)) for share in (0.05, 0.4)
    )
    assert np.array_equal(one == "test", other == "test")
    assert not np.array_equal(one == "valid", other == "valid")


def test_rows_have_the_split_of_their_query() -> None:
    queries = ["a", "b", "A ", "c", "b", ""]
    assert assign_splits(queries, CONFIG).tolist() == [assign_split(query, CONFIG) for query in queries]
    assert assign_splits([], CONFIG).tolist() == []


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_shares_without_training_rows_are_refused(valid: float, test: float) -> None:
    with pytest.raises(ValidationError, match="no row is left for training"):
        SplitConfig(valid_share=valid, test_share=test)
