"""Slices of test rows by language, query and title."""

import numpy as np
import pyarrow as pa
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pipeline.evaluation.slices import LANGUAGES, UNCLEAR_LANGUAGE, detect_language, slice_names
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
def test_rows_of_one_market_are_sliced_by_language(code: str) -> None:
    assert slice_names(rows(TEXTS[code], ("zzz 12", "XK-20 9mm")), ("no", "yes"))["language"].tolist() == [
        code,
        UNCLEAR_LANGUAGE,
    ]


@pytest.mark.parametrize("text", ["", "1234 99", "hdmi 2m", "iphone", "sneakers Nike Air", "🙂"])
def test_text_without_a_language_is_unclear(text: str) -> None:
    assert detect_language(text) == UNCLEAR_LANGUAGE


def test_rare_languages_are_not_guessed() -> None:
    assert (
        LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify("zapatillas blancas mujer")[
            0
        ]
        == "ext"
    )
    assert detect_language("zapatillas blancas mujer") == "es"
    assert len(set(LANGUAGES)) == len(LANGUAGES) == 35


def test_queries_are_sliced_by_ads_and_words() -> None:
    head = [("red shoes", "A" * (number + 1)) for number in range(10)]
    table = rows(*head, ("  the one  and only such query ", "b"), ("shoes", "c"), ("shoes", "d"))
    slices = slice_names(table, ("no", "yes"))
    assert slices["query_ads"].tolist() == ["10 ads and more"] * 10 + ["1 ad"] + ["2 to 9 ads"] * 2
    assert slices["query_words"].tolist() == ["2 words"] * 10 + ["5 words and more"] + ["1 word"] * 2
    assert slices["label"].tolist() == ["no", "yes"] * 6 + ["no"]
    assert set(slices["market"]) == {"us"}


def test_titles_are_sliced_in_thirds() -> None:
    names, counts = np.unique(
        slice_names(rows(*[("q", "a" * length) for length in range(1, 10)]), ("no", "yes"))["ad_length"],
        return_counts=True,
    )
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "up to 3 characters": 3,
        "up to 6 characters": 3,
        "above 6 characters": 3,
    }
