"""The ways test rows are cut into slices."""

import numpy as np
import pyarrow as pa
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pipeline.evaluation.slices import LANGUAGES, UNSURE, cut, language
from pipeline.schema import ROW_SCHEMA

TEXTS = {
    "en": ("red shoes", "Running shoes for women"),
    "es": ("zapatos rojos de mujer", "Zapatillas deportivas para mujer"),
    "de": ("rote schuhe", "Laufschuhe für Damen"),
    "fr": ("chaussures rouges", "Chaussures de course pour femme"),
    "ja": ("靴 レディース", "ランニングシューズ"),
    "ru": ("чёрные туфли", "Туфли для женщин"),
}


def rows(*pairs: tuple[str, str]) -> pa.Table:
    """Contract rows of queries and titles."""
    made = [
        {
            "row_id": str(number),
            "query": query,
            "ad_title": title,
            "market": "us",
            "label": number % 2,
            "weight": 1.0,
        }
        for number, (query, title) in enumerate(pairs)
    ]
    return pa.Table.from_pylist(made, schema=ROW_SCHEMA)


@pytest.mark.parametrize("code", TEXTS)
def test_rows_of_one_market_are_cut_by_their_language(code: str) -> None:
    assert cut(rows(TEXTS[code], ("zzz 12", "XK-20 9mm")), ("no", "yes"))["language"].tolist() == [
        code,
        UNSURE,
    ]


@pytest.mark.parametrize("text", ["", "1234 99", "hdmi 2m", "iphone", "sneakers Nike Air", "🙂"])
def test_a_text_that_says_no_language_is_in_none(text: str) -> None:
    assert language(text) == UNSURE


def test_languages_that_nobody_advertises_in_are_not_guessed() -> None:
    assert (
        LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify("zapatillas blancas mujer")[
            0
        ]
        == "ext"
    )
    assert language("zapatillas blancas mujer") == "es"
    assert len(set(LANGUAGES)) == len(LANGUAGES) == 35


def test_head_and_tail_queries_and_their_words_are_told_apart() -> None:
    head = [("red shoes", "A" * (number + 1)) for number in range(10)]
    table = rows(*head, ("  the one  and only such query ", "b"), ("shoes", "c"), ("shoes", "d"))
    slices = cut(table, ("no", "yes"))
    assert slices["query_ads"].tolist() == ["10 ads and more"] * 10 + ["1 ad"] + ["2 to 9 ads"] * 2
    assert slices["query_words"].tolist() == ["2 words"] * 10 + ["5 words and more"] + ["1 word"] * 2
    assert slices["label"].tolist() == ["no", "yes"] * 6 + ["no"]
    assert set(slices["market"]) == {"us"}


def test_titles_are_cut_in_thirds_named_by_their_bounds() -> None:
    names, counts = np.unique(
        cut(rows(*[("q", "a" * length) for length in range(1, 10)]), ("no", "yes"))["ad_length"],
        return_counts=True,
    )
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "up to 3 characters": 3,
        "up to 6 characters": 3,
        "above 6 characters": 3,
    }
