"""Queries of one split that nearly occur in another.

Each distinct query gets 64-bit signatures. Two queries with a common signature are near; nothing is compared
pairwise. Kinds of near queries:

- same: equal after normalization. The split makes this impossible; it is checked all the same.
- spelling: equal up to case, accents, punctuation and spacing. A gap between two digits stays, so that 1.5 is
  not 15.
- word_order: the same words in another order. The signature is the sum of the words' hashes.
- one_word: one word added, removed or replaced. The signatures are the sum and, for each word, the sum
  without it. Only queries of at least three words count: with fewer, all would be near. Many pairs are honest
  ("red running shoes", "blue running shoes"), and dense data have more of them. The share of this kind shows
  how much the test resembles the training data; only the other kinds are leaks.

A query counts once, under the first kind that applies. Chinese, Japanese and Thai text without spaces is one
word, so only the first two kinds find it.

Shape legend: R distinct raw queries, Q distinct normalized queries, W words of all queries, E entries of a
join, C bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.data.splits import assign_splits, normalize_query
from validation.text.hashing import mix_bits
from validation.text.text_bytes import text_bytes
from validation.text.words import compose, fold_texts, hash_texts

KINDS = ("same", "spelling", "word_order", "one_word")

MIN_WORDS = 3  # of a query of kind one_word

MERGE_QUERIES = 1 << 16  # new queries that are merged at once

MAX_QUERIES = 500_000  # compared at once: about 700 MB

NUM_EXAMPLES = 5

ALL_KEYS = np.uint64(2**64 - 1)  # limit of a sample that holds all queries

_BYTE_HASHES = mix_bits(np.arange(1, 257, dtype=np.uint64))  # a random number for each byte

_TRAIN, _VALID, _TEST = (1 << SPLITS.index(split) for split in ("train", "valid", "test"))

_BIT_TO_SPLIT = {1 << i: split for i, split in enumerate(SPLITS)}

# splits that a query must not have a near query in; a pair counts for the later split
_EARLIER_SPLITS = {_TRAIN: 0, _VALID: _TRAIN, _TEST: _TRAIN | _VALID}


class NearExample(NamedTuple):
    """A query and a near query of another split."""

    query: str
    split: str
    other: str
    other_split: str


@dataclass(frozen=True)
class NearQueries:
    """Queries of one kind that have a near query in another split."""

    kind: str
    num_test: int  # test queries with a near query in train or valid
    num_valid: int  # valid queries with a near query in train
    share_of_test: float
    examples: tuple[NearExample, ...]


class QuerySample:
    """Distinct queries of a stream; about MAX_QUERIES of them if there are more.

    They are sampled by their letters, so that queries that differ in case, accents, punctuation, spacing or
    word order are sampled together. Samples of parts, merged in order, give exactly the sample of the whole.
    """

    def __init__(self, limit: np.uint64 = ALL_KEYS) -> None:
        self._merged = pa.array([], pa.string())
        self._new: list[pa.Array] = []
        self._num_new = 0
        self.limit = limit  # queries with a letter key up to here are sampled

    def add(self, queries: pa.Array) -> None:
        """Add queries, known ones and null included."""
        self._append(self._sample(pc.unique(queries.drop_null())))

    def merge(self, other: QuerySample) -> None:
        """Add the sample of the rows that follow."""
        queries, _ = other.queries()
        if other.limit < self.limit:
            self.limit = other.limit
            self._merged, self._new = self._sample(self._merged), [self._sample(new) for new in self._new]
            self._num_new = sum(map(len, self._new))
        self._append(self._sample(queries) if self.limit < other.limit else queries)

    def _append(self, queries: pa.Array) -> None:
        self._new.append(queries)
        self._num_new += len(queries)
        # wait for as many new queries as are merged already: the total work stays linear
        if self._num_new > max(len(self._merged), MERGE_QUERIES):
            self._merge()

    def queries(self) -> tuple[pa.Array, float]:
        """Return the sampled queries, and their approximate share of all queries."""
        self._merge()
        return self._merged, (int(self.limit) + 1) / 2**64

    def _sample(self, queries: pa.Array) -> pa.Array:
        if self.limit == ALL_KEYS:
            return queries
        return queries.filter(pa.array(letter_keys(queries) <= self.limit))

    def _merge(self) -> None:
        self._merged = pc.unique(pa.chunked_array([self._merged, *self._new]))
        self._new, self._num_new = [], 0
        if len(self._merged) > MAX_QUERIES:
            # below the next key, not at it: queries of the same letters stay or go together
            next_key = int(np.partition(letter_keys(self._merged), MAX_QUERIES)[MAX_QUERIES])
            self.limit = np.uint64(max(next_key - 1, 0))
            self._merged = self._sample(self._merged)


def letter_keys(queries: pa.Array) -> np.ndarray:
    """Return a uniform 64-bit number for each query (Q,).

    Queries of the same letters and digits have equal numbers.
    """
    start_Q, byte_C = text_bytes(pc.replace_substring(fold_texts(queries), " ", ""))
    sum_C = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_BYTE_HASHES[byte_C])])
    return mix_bits(sum_C[start_Q[1:]] - sum_C[start_Q[:-1]])


def find_near_queries(
    raw_queries: pa.Array, config: SplitConfig
) -> tuple[dict[str, int], tuple[NearQueries, ...]]:
    """Find near queries of each kind.

    Args:
        raw_queries: Distinct queries as they lie in the rows (R,).
        config: Split of the queries.

    Returns:
        Number of distinct normalized queries by split, and the near queries of each kind.
    """
    raw = raw_queries.to_pylist()
    normal = pa.array([normalize_query(query) for query in raw], pa.string())
    split_to_bit = {split: bit for bit, split in _BIT_TO_SPLIT.items()}
    bit_R = np.array([split_to_bit[split] for split in assign_splits(raw, config).tolist()], dtype=np.uint8)
    codes = normal.dictionary_encode()
    splits_Q = np.zeros(len(codes.dictionary), dtype=np.uint8)
    np.bitwise_or.at(splits_Q, codes.indices.to_numpy(), bit_R)
    queries, split_Q = codes.dictionary, _lowest_bit(splits_Q)
    counts: dict[str, int] = {split: int((split_Q == bit).sum()) for bit, split in _BIT_TO_SPLIT.items()}
    found = [_same_queries(queries, splits_Q, counts["test"])]
    counted_Q = splits_Q != split_Q
    for kind, (signature_E, query_E) in zip(KINDS[1:], _signatures(queries), strict=True):
        leaks_Q = _has_near_query(signature_E, query_E, split_Q) & ~counted_Q
        num_test, num_valid = (int((leaks_Q & (split_Q == bit)).sum()) for bit in (_TEST, _VALID))
        examples = _examples(queries, split_Q, leaks_Q, signature_E, query_E)
        share = num_test / max(counts["test"], 1)
        found.append(NearQueries(kind, num_test, num_valid, share, tuple(examples)))
        counted_Q = counted_Q | leaks_Q
    return counts, tuple(found)


def _same_queries(queries: pa.Array, splits_Q: np.ndarray, num_test: int) -> NearQueries:
    """Count the queries that are in several splits; `splits_Q` has a bit for each split."""
    split_Q = _lowest_bit(splits_Q)
    other_Q = _lowest_bit(splits_Q ^ split_Q)
    in_several = np.flatnonzero(splits_Q != split_Q)
    examples = [_example(queries, split_Q, q, q, int(other_Q[q])) for q in in_several[:NUM_EXAMPLES]]
    return NearQueries("same", len(in_several), 0, len(in_several) / max(num_test, 1), tuple(examples))


def _lowest_bit(splits: np.ndarray) -> np.ndarray:
    """Return one of the splits that a query is in."""
    return splits & (~splits + np.uint8(1))


def _signatures(queries: pa.Array) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield signatures (E,) and the query of each (E,), for each kind but the first."""
    folded = fold_texts(queries)
    # a query of signs or pictures alone has no folded form
    folded = pc.if_else(pc.equal(folded, ""), queries, folded)
    closed = pc.replace_substring_regex(folded, r"(\p{N}) (\p{N})", r"\1_\2")
    # in "1 2 3" the first pass replaces one gap
    closed = pc.replace_substring_regex(closed, r"(\p{N}) (\p{N})", r"\1_\2")
    number_Q = np.arange(len(queries))
    yield hash_texts(pc.replace_substring(closed, " ", "")), number_Q

    lists = pc.ascii_split_whitespace(folded)
    query_W, words = pc.list_parent_indices(lists).to_numpy(), lists.flatten().dictionary_encode()
    hash_W = hash_texts(words.dictionary)[words.indices.to_numpy()]
    sum_Q = np.zeros(len(queries), dtype=np.uint64)
    np.add.at(sum_Q, query_W, hash_W)
    yield sum_Q, number_Q

    is_long_Q = np.bincount(query_W, minlength=len(queries)) >= MIN_WORDS
    is_long_W = is_long_Q[query_W]
    sum_without_W = sum_Q[query_W[is_long_W]] - hash_W[is_long_W]
    signature_E = np.concatenate([sum_Q[is_long_Q], sum_without_W])
    yield signature_E, np.concatenate([number_Q[is_long_Q], query_W[is_long_W]])


def _has_near_query(signature_E: np.ndarray, query_E: np.ndarray, split_Q: np.ndarray) -> np.ndarray:
    """Mark each query that shares a signature with a query of an earlier split (Q,)."""
    order_E = np.argsort(signature_E, kind="stable")
    starts = np.flatnonzero(np.diff(signature_E[order_E], prepend=~signature_E[order_E[:1]]))
    met_Q = np.zeros(len(split_Q), dtype=np.uint8)  # splits of the queries with a common signature
    if len(starts):
        group_splits = np.bitwise_or.reduceat(split_Q[query_E[order_E]], starts)
        group_sizes = np.diff(starts, append=len(order_E))
        np.bitwise_or.at(met_Q, query_E[order_E], np.repeat(group_splits, group_sizes))
    earlier = np.zeros(8, dtype=np.uint8)
    earlier[list(_EARLIER_SPLITS)] = list(_EARLIER_SPLITS.values())
    return (met_Q & earlier[split_Q]) != 0


def _examples(
    queries: pa.Array, split_Q: np.ndarray, leaks_Q: np.ndarray, signature_E: np.ndarray, query_E: np.ndarray
) -> list[NearExample]:
    """Return the first leaking queries, test before valid, each with a near query."""
    leaking = [np.flatnonzero(leaks_Q & (split_Q == bit)) for bit in (_TEST, _VALID)]
    examples = []
    for query in np.concatenate(leaking)[:NUM_EXAMPLES]:
        is_near_E = np.isin(signature_E, signature_E[query_E == query])
        is_earlier_E = (split_Q[query_E] & _EARLIER_SPLITS[int(split_Q[query])]) != 0
        other = query_E[is_near_E & is_earlier_E].min()
        examples.append(_example(queries, split_Q, query, other, split_Q[other]))
    return examples


def _example(queries: pa.Array, split_Q: np.ndarray, query: int, other: int, other_bit: int) -> NearExample:
    return NearExample(
        compose(queries[int(query)].as_py()),
        _BIT_TO_SPLIT[int(split_Q[query])],
        compose(queries[int(other)].as_py()),
        _BIT_TO_SPLIT[int(other_bit)],
    )
