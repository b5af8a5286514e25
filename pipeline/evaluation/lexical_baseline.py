"""The floor every model must beat: gradient-boosted trees on lexical features, one model a task.

Shapes: B rows, F features, V hashed terms. Needs no training of text encoders, no GPU and no network; seconds
for thousands of rows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfTransformer

# Runs of letters or digits; kana and ideographs one by one, as Chinese and Japanese put no space between
# words.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"

_WORD = re.compile(rf"[^\W_{_CJK}]+|[{_CJK}]")

_MAX_TEXT_CHARS = 2_000  # what a query can match stands early in an ad; the rest costs time only

_HASHED_TERMS = 2**18


def _normalise(text: str | None) -> str:
    return " ".join(unicodedata.normalize("NFKC", (text or "")[:_MAX_TEXT_CHARS]).casefold().split())


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _term_counts(text: list[str], unit: str) -> csr_matrix:
    """(B, V) counts of words, or of runs of 2 to 5 characters inside a word. Hashed: texts without one term
    need no special case.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    by_unit: dict[str, dict[str, Any]] = {
        "word": {"analyzer": _words},
        "character": {"analyzer": "char_wb", "ngram_range": (2, 5)},
    }
    vectorizer = HashingVectorizer(
        n_features=_HASHED_TERMS, norm=None, alternate_sign=False, lowercase=False, **by_unit[unit]
    )
    return vectorizer.transform(text)


def _overlap(query: str, text: str) -> tuple[float, ...]:
    """Six numbers of one pair: shares of the words found in the other side, their Jaccard index, phrase
    match, last word, length.
    """
    query_words, text_words = _words(query), _words(text)
    query_set, text_set = set(query_words), set(text_words)
    num_common = len(query_set & text_set)
    return (
        num_common / max(len(query_set), 1),
        num_common / max(len(text_set), 1),
        num_common / max(len(query_set | text_set), 1),
        float(bool(query) and query in text),
        float(bool(query_words) and query_words[-1] in text_set),
        float(len(text_words)),
    )


@dataclass(frozen=True)
class LexicalBaseline:
    """Trees over lexical features of a query and the text columns of an ad. Build with `fit`, read with
    `probability`.
    """

    columns: tuple[str, ...]
    idf: Mapping[str, TfidfTransformer]
    trees: HistGradientBoostingClassifier | None
    constant: float  # the answer where training saw one class only

    @classmethod
    def fit(
        cls, query: Sequence[str], ads: Mapping[str, Sequence[str]], relevant: np.ndarray, seed: int = 0
    ) -> LexicalBaseline:
        """Fit on B rows: `ads` maps each text column (title, description, ...) to B texts, `relevant` is (B,)
        bool. ValueError if uneven.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.feature_extraction.text import TfidfTransformer

        columns, relevant = tuple(sorted(ads)), np.asarray(relevant, dtype=bool)
        sizes = {"query": len(query), "relevant": len(relevant)} | {
            column: len(ads[column]) for column in columns
        }
        if len(set(sizes.values())) != 1 or not len(query) or not columns:
            raise ValueError(
                f"the baseline needs one or more rows and an equal number in each column; got {sizes}"
            )
        if relevant.all() or not relevant.any():
            return cls(columns, {}, None, float(relevant[0]))
        text = [
            _normalise(value) for values in (query, *(ads[column] for column in columns)) for value in values
        ]
        idf = {unit: TfidfTransformer().fit(_term_counts(text, unit)) for unit in ("word", "character")}
        trees = HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=150, max_leaf_nodes=15, l2_regularization=1.0, random_state=seed
        )
        fitted = cls(columns, idf, trees, float(relevant.mean()))
        trees.fit(fitted._features(query, ads), relevant)
        return fitted

    def probability(self, query: Sequence[str], ads: Mapping[str, Sequence[str]]) -> np.ndarray:
        """(B,) float64, P(relevant) of each row. ValueError if a column seen in `fit` is missing."""
        missing = [column for column in self.columns if column not in ads]
        if missing:
            raise ValueError(f"the baseline was fitted on columns {self.columns}; missing here: {missing}")
        if self.trees is None or not len(query):
            return np.full(len(query), self.constant, dtype=np.float64)
        return self.trees.predict_proba(self._features(query, ads))[:, 1].astype(np.float64)

    def _features(self, query: Sequence[str], ads: Mapping[str, Sequence[str]]) -> np.ndarray:
        """(B, F) float64: two cosines and six overlap numbers a column, and the length of the query in words
        and characters.
        """
        queries = [_normalise(value) for value in query]
        features: list[Any] = [
            [float(len(_words(value))) for value in queries],
            [float(len(value)) for value in queries],
        ]
        query_terms = {unit: idf.transform(_term_counts(queries, unit)) for unit, idf in self.idf.items()}
        for column in self.columns:
            text = [_normalise(value) for value in ads[column]]
            for unit, idf in self.idf.items():
                cosine = query_terms[unit].multiply(idf.transform(_term_counts(text, unit))).sum(axis=1)
                features.append(np.asarray(cosine).ravel())
            features.extend(zip(*map(_overlap, queries, text), strict=True))
        return np.array(features, dtype=np.float64).T
