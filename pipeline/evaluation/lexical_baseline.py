"""Lexical baseline that every model must beat: gradient-boosted trees on lexical features.

Each task has its own. It needs no GPU and no network, and takes seconds for thousands of rows. Terms are
counted in batches of rows, so that memory holds the features of all rows and the terms of a few.

Shape legend: B rows, F features, V hashed terms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.tasks import Task
from pipeline.data.splits import query_positions

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfTransformer

# Runs of letters or digits. Kana and ideographs count one by one: Chinese and Japanese have no spaces between
# words.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"

_WORD = re.compile(rf"[^\W_{_CJK}]+|[{_CJK}]")

_MAX_TEXT_CHARS = 2_000  # later text of an ad hardly matters for a match

_HASHED_TERMS = 2**18

_BATCH_TEXTS = 10_000  # some 100 MB of terms

_BATCH_ROWS = 100_000  # of texts as Python strings

_UNITS = ("word", "character")


def _normalise(text: str | None) -> str:
    return " ".join(unicodedata.normalize("NFKC", (text or "")[:_MAX_TEXT_CHARS]).casefold().split())


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _term_counts(text: list[str], unit: str) -> csr_matrix:
    """Return hashed counts (B, V) of words, or of runs of 2 to 5 characters within words."""
    from sklearn.feature_extraction.text import HashingVectorizer

    by_unit: dict[str, dict[str, Any]] = {
        "word": {"analyzer": _words},
        "character": {"analyzer": "char_wb", "ngram_range": (2, 5)},
    }
    vectorizer = HashingVectorizer(
        n_features=_HASHED_TERMS, norm=None, alternate_sign=False, lowercase=False, **by_unit[unit]
    )
    rows = {value: row for row, value in enumerate(dict.fromkeys(text))}  # queries and ads repeat
    return vectorizer.transform(list(rows))[[rows[value] for value in text]]


def _fit_idf(batches: Iterable[list[str]]) -> dict[str, TfidfTransformer]:
    """Return the inverse document frequencies by unit, those of `TfidfTransformer.fit` of all texts."""
    from sklearn.feature_extraction.text import TfidfTransformer

    num_texts, with_term_V = 0, {unit: np.zeros(_HASHED_TERMS) for unit in _UNITS}
    for batch in batches:
        num_texts += len(batch)
        for unit, count_V in with_term_V.items():
            count_V += np.bincount(_term_counts(batch, unit).indices, minlength=_HASHED_TERMS)
    fitted = {unit: TfidfTransformer() for unit in _UNITS}
    for unit, count_V in with_term_V.items():
        fitted[unit].idf_ = np.log((num_texts + 1) / (count_V + 1)) + 1.0
    return fitted


def _normalised_batches(columns: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    for values in columns:
        for start in range(0, len(values), _BATCH_TEXTS):
            yield [_normalise(value) for value in values[start : start + _BATCH_TEXTS]]


def _overlap(query: str, text: str) -> tuple[float, ...]:
    """Return two shares of common words, their Jaccard index, phrase match, last word and length."""
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
    """Fitted trees over lexical features of a query and the text columns of an ad."""

    columns: tuple[str, ...]
    idf: Mapping[str, TfidfTransformer]
    trees: HistGradientBoostingClassifier | None
    constant: float  # probability if training had one class only

    @classmethod
    def fit(
        cls, query: Sequence[str], ads: Mapping[str, Sequence[str]], relevant: np.ndarray, seed: int = 0
    ) -> LexicalBaseline:
        """Fit the trees.

        Args:
            query: B queries.
            ads: B texts by text column (title, description, ...).
            relevant: (B,) bool.
            seed: Seed of the trees.

        Raises:
            ValueError: There are no rows or no columns, or columns have different lengths.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier

        columns, relevant = tuple(sorted(ads)), np.asarray(relevant, dtype=bool)
        sizes = {"query": len(query), "relevant": len(relevant)}
        sizes |= {column: len(ads[column]) for column in columns}
        if len(set(sizes.values())) != 1 or not len(query) or not columns:
            raise ValueError(
                f"columns are empty or have different lengths: {sizes}; pass equally many texts in each"
            )
        if relevant.all() or not relevant.any():
            return cls(columns, {}, None, float(relevant[0]))
        idf = _fit_idf(_normalised_batches((query, *(ads[column] for column in columns))))
        trees = HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=150, max_leaf_nodes=15, l2_regularization=1.0, random_state=seed
        )
        fitted = cls(columns, idf, trees, float(relevant.mean()))
        trees.fit(fitted._features(query, ads), relevant)
        return fitted

    def probability(self, query: Sequence[str], ads: Mapping[str, Sequence[str]]) -> np.ndarray:
        """Return P(relevant) of each row (B,).

        Raises:
            ValueError: A column of `fit` is missing.
        """
        missing = [column for column in self.columns if column not in ads]
        if missing:
            raise ValueError(f"columns are missing: {missing}; the baseline was fitted on {self.columns}")
        if self.trees is None or not len(query):
            return np.full(len(query), self.constant, dtype=np.float64)
        return self.trees.predict_proba(self._features(query, ads))[:, 1].astype(np.float64)

    def _features(self, query: Sequence[str], ads: Mapping[str, Sequence[str]]) -> np.ndarray:
        """Return features (B, F): two lengths of the query; two cosines and six overlaps of each column."""
        batches = (slice(start, start + _BATCH_TEXTS) for start in range(0, len(query), _BATCH_TEXTS))
        return np.concatenate(
            [
                self._batch_features(query[rows], {column: ads[column][rows] for column in self.columns})
                for rows in batches
            ]
        )

    def _batch_features(self, query: Sequence[str], ads: Mapping[str, Sequence[str]]) -> np.ndarray:
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


def draw_train_rows(train: pa.Table, max_rows: int) -> pa.Table:
    """Return the `max_rows` rows whose queries have the lowest hashes, whatever the order of the rows."""
    if train.num_rows <= max_rows:
        return train
    queries = train.column("query").cast(pa.large_string()).combine_chunks().dictionary_encode()
    position_N = query_positions(queries.dictionary.to_pylist())[queries.indices.to_numpy()]
    keys = pa.table({"position": position_N, "row_id": train.column("row_id")})
    order_N = pc.sort_indices(keys, sort_keys=[("position", "ascending"), ("row_id", "ascending")])
    return train.take(order_N[:max_rows])


def lexical_probability(task: Task, train: pa.Table | None, test: pa.Table, seed: int) -> np.ndarray:
    """Return the lexical baseline's probability of relevance (N,); one half without training rows."""
    if train is None or not train.num_rows or not test.num_rows:
        return np.full(test.num_rows, 0.5)

    def texts(table: pa.Table, column: str) -> list[str]:
        return [text or "" for text in table.column(column).to_pylist()]

    def ads(table: pa.Table) -> dict[str, list[str]]:
        return {column: texts(table, column) for column in task.ad_columns}

    relevant = train.column("label").to_numpy() >= task.relevant_from
    baseline = LexicalBaseline.fit(texts(train, "query"), ads(train), relevant, seed)
    parts = (test.slice(start, _BATCH_ROWS) for start in range(0, test.num_rows, _BATCH_ROWS))
    return np.concatenate([baseline.probability(texts(part, "query"), ads(part)) for part in parts])
