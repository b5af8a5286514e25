"""Slices of a task's rows, by market, query length, language and other dimensions.

Shape legend: N rows.
"""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# (upper bound, slice name); larger values have the name given to `_name_by_bound`
QUERY_WORDS = ((1, "1 word"), (2, "2 words"), (4, "3 to 4 words"))

# labeled ads of a query: tail queries to head queries
QUERY_ADS = ((1, "1 ad"), (9, "2 to 9 ads"))

# ISO 639-1 codes of common languages. With all languages allowed, short texts are often
# classified as a rare one.
LANGUAGES = [
    "ar",
    "bg",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fi",
    "fr",
    "he",
    "hi",
    "hr",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "lt",
    "lv",
    "nl",
    "no",
    "pl",
    "pt",
    "ro",
    "ru",
    "sk",
    "sl",
    "sv",
    "th",
    "tr",
    "uk",
    "vi",
    "zh",
]

MIN_LANGUAGE_PROBABILITY = 0.5

UNCLEAR_LANGUAGE = "unclear"


def slice_names(table: pa.Table, label_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the slice name of each row (N,) by dimension.

    Dimensions: market, query_words, query_ads, language, ad_length, label.
    """
    queries = table.column("query").to_pylist()
    words_N = pc.list_value_length(
        pc.utf8_split_whitespace(pc.utf8_trim_whitespace(table.column("query")))
    ).to_numpy()
    _, index_N, ads_Q = np.unique(np.asarray(queries, dtype=object), return_inverse=True, return_counts=True)
    titles = table.column("ad_title").to_pylist()
    return {
        "market": np.asarray(table.column("market").to_pylist(), dtype=object),
        "query_words": _name_by_bound(words_N, QUERY_WORDS, "5 words and more"),
        "query_ads": _name_by_bound(ads_Q[index_N], QUERY_ADS, "10 ads and more"),
        "language": np.asarray(
            [detect_language(f"{query} {title}") for query, title in zip(queries, titles, strict=True)],
            dtype=object,
        ),
        "ad_length": _name_by_third(pc.utf8_length(table.column("ad_title")).to_numpy(), "characters"),
        "label": np.asarray(label_names, dtype=object)[table.column("label").to_numpy()],
    }


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, or UNCLEAR_LANGUAGE.

    Pass a query together with its ad's title: most queries alone are too short.
    """
    code, probability = _language_classifier().classify(text)
    return str(code) if probability >= MIN_LANGUAGE_PROBABILITY else UNCLEAR_LANGUAGE


def _name_by_bound(number_N: np.ndarray, bounds: tuple[tuple[int, str], ...], beyond: str) -> np.ndarray:
    """Return the name of the first bound that is not exceeded; `beyond` if all are."""
    position_N = np.searchsorted([bound for bound, _ in bounds], number_N)
    return np.asarray([*(name for _, name in bounds), beyond], dtype=object)[position_N]


def _name_by_third(number_N: np.ndarray, unit: str) -> np.ndarray:
    """Return the third that each row is in, named by its bounds."""
    low, high = np.quantile(number_N, [1 / 3, 2 / 3]).astype(int)
    bounds = ((low, f"up to {low} {unit}"), (high, f"up to {high} {unit}"))
    return _name_by_bound(number_N, bounds, f"above {high} {unit}")


@functools.cache
def _language_classifier() -> Any:
    """Return py3langid's classifier with its published weights, limited to LANGUAGES."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    classifier.set_languages(LANGUAGES)
    return classifier
