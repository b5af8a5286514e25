"""Parts of a task's test rows that a model may be worse on: one name a row for each way of cutting.

Shape legend: N rows.
"""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

QUERY_WORDS = ((1, "1 word"), (2, "2 words"), (4, "3 to 4 words"))  # up to so many; beyond: 5 words and more

# tail queries to head queries, by how many of a query's ads were judged
QUERY_ADS = ((1, "1 ad"), (9, "2 to 9 ads"))

# ISO 639-1, of most of what is advertised; out of all languages, texts this short are often taken for rare
# ones
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

SURE_ENOUGH = 0.5  # of a language, among those

UNSURE = "unclear"


def cut(table: pa.Table, label_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Slice names (N,) by way of cutting: market, query_words, query_ads, language, ad_length, label."""
    queries = table.column("query").to_pylist()
    words_N = pc.list_value_length(
        pc.utf8_split_whitespace(pc.utf8_trim_whitespace(table.column("query")))
    ).to_numpy()
    _, index_N, ads_Q = np.unique(np.asarray(queries, dtype=object), return_inverse=True, return_counts=True)
    titles = table.column("ad_title").to_pylist()
    return {
        "market": np.asarray(table.column("market").to_pylist(), dtype=object),
        "query_words": steps(words_N, QUERY_WORDS, "5 words and more"),
        "query_ads": steps(ads_Q[index_N], QUERY_ADS, "10 ads and more"),
        "language": np.asarray(
            [language(f"{query} {title}") for query, title in zip(queries, titles, strict=True)], dtype=object
        ),
        "ad_length": thirds(pc.utf8_length(table.column("ad_title")).to_numpy(), "characters"),
        "label": np.asarray(label_names, dtype=object)[table.column("label").to_numpy()],
    }


def steps(number_N: np.ndarray, named: tuple[tuple[int, str], ...], beyond: str) -> np.ndarray:
    """The name of the first step that a number is not above."""
    place_N = np.searchsorted([most for most, _ in named], number_N)
    return np.asarray([*(name for _, name in named), beyond], dtype=object)[place_N]


def thirds(number_N: np.ndarray, unit: str) -> np.ndarray:
    """Which third of the rows each is in, named by its bounds."""
    low, high = np.quantile(number_N, [1 / 3, 2 / 3]).astype(int)
    return steps(
        number_N, ((low, f"up to {low} {unit}"), (high, f"up to {high} {unit}")), f"above {high} {unit}"
    )


def language(text: str) -> str:
    """The language of a query and its ad's title together, as most queries alone are too short to tell: an
    ISO 639-1 code, or UNSURE.
    """
    code, sure = identifier().classify(text)
    return str(code) if sure >= SURE_ENOUGH else UNSURE


@functools.cache
def identifier() -> Any:
    """langid's classifier of LANGUAGES, with its published weights."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found.set_languages(LANGUAGES)
    return found
