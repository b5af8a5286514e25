"""Queries of one split that nearly stand in another. Legend of array suffixes: Q distinct queries, E entries
of a join.

Each distinct query gets 64-bit signatures, and queries that share a signature are alike; nothing is compared
pairwise:
- same: the normalised query itself. The split makes this impossible; it is looked at all the same.
- spelling: equal up to case, accents, punctuation and spacing. A gap between two digits stays, so that 1.5 is
  not 15.
- word_order: the same words in another order; the signature is the sum of the words' hashes.
- one_word: one word more, less or other. Signatures are the sum and, for each word, the sum without it. Only
  between queries of at least three words: with fewer, all would be alike. Many honest neighbours are of this
  kind ("red running shoes", "blue running shoes"), the more so the denser the data: read its share as how far
  the test resembles the training data, and only the kinds above as a leak.
A query counts once, under the first kind it meets. Chinese, Japanese and Thai text without spaces is one
word, so only the first two kinds see it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.data.splits import normalise_query, split_rows
from validation.text.hashing import mix
from validation.text.text_bytes import text_bytes
from validation.text.words import fold_texts, hash_texts, shown

KINDS = ("same", "spelling", "word_order", "one_word")

MIN_WORDS = 3

TAKEN_UP_AT_ONCE = 1 << 16

MAX_QUERIES = 500_000  # compared at once: about 700 MB

NUM_EXAMPLES = 5

_LETTERS = mix(np.arange(1, 257, dtype=np.uint64))  # a number for each byte

_TRAIN, _VALID, _TEST = (1 << SPLITS.index(side) for side in ("train", "valid", "test"))

# What a query must not meet. A pair that spans two splits is counted on the later side.
_LEAKS = {_TRAIN: 0, _VALID: _TRAIN, _TEST: _TRAIN | _VALID}


@dataclass(frozen=True)
class NearQueries:
    """Queries of one kind that have a counterpart in another split."""

    kind: str
    num_test: int  # test queries with a counterpart in train or valid
    num_valid: int  # valid queries with a counterpart in train
    share_of_test: float
    examples: tuple[tuple[str, str, str, str], ...]  # query, its split, counterpart, its split


class DrawnQueries:
    """The distinct queries of a stream; of more than MAX_QUERIES about that many, drawn by their letters:
    queries that differ in case, accents, punctuation, spacing or the order of words have the same letters and
    are drawn together.
    """

    def __init__(self) -> None:
        self._known, self._new, self._num_new = pa.array([], pa.string()), list[pa.Array](), 0
        self._limit = np.uint64(2**64 - 1)  # keys up to here are drawn

    def add(self, queries: pa.Array) -> None:
        """Take up queries that may be known; null is none."""
        self._new.append(self._drawn(pc.unique(queries.drop_null())))
        self._num_new += len(self._new[-1])
        # so rarely that each is looked up a constant number of times
        if self._num_new > max(len(self._known), TAKEN_UP_AT_ONCE):
            self._take_up()

    def queries(self) -> tuple[pa.Array, float]:
        """The queries drawn, and about which share of all they are."""
        self._take_up()
        return self._known, (int(self._limit) + 1) / 2**64

    def _drawn(self, queries: pa.Array) -> pa.Array:
        everything = int(self._limit) == 2**64 - 1
        return queries if everything else queries.filter(pa.array(letter_keys(queries) <= self._limit))

    def _take_up(self) -> None:
        self._known = pc.unique(pa.chunked_array([self._known, *self._new]))
        self._new, self._num_new = [], 0
        if len(self._known) > MAX_QUERIES:
            # below the next key, and not at it: queries of the same letters stay or go together
            self._limit = np.uint64(
                max(int(np.partition(letter_keys(self._known), MAX_QUERIES)[MAX_QUERIES]) - 1, 0)
            )
            self._known = self._drawn(self._known)


def letter_keys(queries: pa.Array) -> np.ndarray:
    """A uniform 64-bit number for each query, equal for those made of the same letters and digits, folded
    (Q,).
    """
    start_Q, byte_C = text_bytes(pc.replace_substring(fold_texts(queries), " ", ""))
    sum_C = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_LETTERS[byte_C])])
    return mix(sum_C[start_Q[1:]] - sum_C[start_Q[:-1]])


def find_near_queries(
    raw_queries: pa.Array, config: SplitConfig
) -> tuple[dict[str, int], tuple[NearQueries, ...]]:
    """The number of distinct normalised queries of each split, and what of each kind leaks between them.
    `raw_queries` are distinct.
    """
    raw = raw_queries.to_pylist()
    normal = pa.array([normalise_query(query) for query in raw], pa.string())
    bit_of: dict[str, int] = {side: 1 << i for i, side in enumerate(SPLITS)}
    bit_R = np.array([bit_of[side] for side in split_rows(raw, config).tolist()], dtype=np.uint8)
    codes = normal.dictionary_encode()
    side_Q = np.zeros(len(codes.dictionary), dtype=np.uint8)
    np.bitwise_or.at(side_Q, codes.indices.to_numpy(), bit_R)
    queries, own_Q = codes.dictionary, _lowest_bit(side_Q)
    counts = {side: int((own_Q == bit).sum()) for side, bit in bit_of.items()}
    torn_Q = side_Q != own_Q
    examples = [
        _example(queries, own_Q, q, q, int(_lowest_bit(side_Q ^ own_Q)[q]))
        for q in np.flatnonzero(torn_Q)[:NUM_EXAMPLES]
    ]
    found = [
        NearQueries("same", int(torn_Q.sum()), 0, int(torn_Q.sum()) / max(counts["test"], 1), tuple(examples))
    ]
    counted_Q = torn_Q
    for kind, (signature_E, query_E) in zip(KINDS[1:], _signatures(queries), strict=True):
        leak_Q = _meets(signature_E, query_E, own_Q) & ~counted_Q
        found.append(
            _summary(kind, leak_Q, own_Q, counts, _examples(queries, own_Q, leak_Q, signature_E, query_E))
        )
        counted_Q = counted_Q | leak_Q
    return counts, tuple(found)


def _lowest_bit(sides: np.ndarray) -> np.ndarray:
    """One split of those that a broken split gave a query."""
    return sides & (~sides + np.uint8(1))


def _signatures(queries: pa.Array) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """For each kind but the first, signatures (E,) and the query each belongs to (E,)."""
    folded = fold_texts(queries)
    # nothing but signs or pictures: these are the query
    folded = pc.if_else(pc.equal(folded, ""), queries, folded)
    closed = pc.replace_substring_regex(folded, r"(\p{N}) (\p{N})", r"\1_\2")
    # of 1 2 3 the first pass sees one gap
    closed = pc.replace_substring_regex(closed, r"(\p{N}) (\p{N})", r"\1_\2")
    number_Q = np.arange(len(queries))
    yield hash_texts(pc.replace_substring(closed, " ", "")), number_Q

    lists = pc.ascii_split_whitespace(folded)
    query_W, words = pc.list_parent_indices(lists).to_numpy(), lists.flatten().dictionary_encode()
    hash_W = hash_texts(words.dictionary)[words.indices.to_numpy()]
    sum_Q = np.zeros(len(queries), dtype=np.uint64)
    np.add.at(sum_Q, query_W, hash_W)
    yield sum_Q, number_Q

    long_Q = np.bincount(query_W, minlength=len(queries)) >= MIN_WORDS
    long_W = long_Q[query_W]
    without_W = sum_Q[query_W[long_W]] - hash_W[long_W]
    yield np.concatenate([sum_Q[long_Q], without_W]), np.concatenate([number_Q[long_Q], query_W[long_W]])


def _meets(signature_E: np.ndarray, query_E: np.ndarray, own_Q: np.ndarray) -> np.ndarray:
    """Whether each query shares a signature with one of a split it must not meet (Q,)."""
    order_E = np.argsort(signature_E, kind="stable")
    starts = np.flatnonzero(np.diff(signature_E[order_E], prepend=~signature_E[order_E[:1]]))
    met_Q = np.zeros(len(own_Q), dtype=np.uint8)
    if len(starts):
        group_E = np.bitwise_or.reduceat(own_Q[query_E[order_E]], starts)
        np.bitwise_or.at(met_Q, query_E[order_E], np.repeat(group_E, np.diff(starts, append=len(order_E))))
    forbidden = np.zeros(8, dtype=np.uint8)
    forbidden[list(_LEAKS)] = list(_LEAKS.values())
    return (met_Q & forbidden[own_Q]) != 0


def _summary(
    kind: str,
    leak_Q: np.ndarray,
    own_Q: np.ndarray,
    counts: dict[str, int],
    examples: list[tuple[str, str, str, str]],
) -> NearQueries:
    num_test, num_valid = (int((leak_Q & (own_Q == bit)).sum()) for bit in (_TEST, _VALID))
    return NearQueries(kind, num_test, num_valid, num_test / max(counts["test"], 1), tuple(examples))


def _examples(
    queries: pa.Array, own_Q: np.ndarray, leak_Q: np.ndarray, signature_E: np.ndarray, query_E: np.ndarray
) -> list[tuple[str, str, str, str]]:
    """The first few leaking queries, test before valid, each with a counterpart."""
    first = [*np.flatnonzero(leak_Q & (own_Q == _TEST)), *np.flatnonzero(leak_Q & (own_Q == _VALID))][
        :NUM_EXAMPLES
    ]
    found = []
    for query in first:
        alike_E = np.isin(signature_E, signature_E[query_E == query])
        others = query_E[alike_E & ((own_Q[query_E] & _LEAKS[int(own_Q[query])]) != 0)]
        found.append(_example(queries, own_Q, query, others.min(), own_Q[others.min()]))
    return found


def _example(
    queries: pa.Array, own_Q: np.ndarray, query: int, other: int, other_side: int
) -> tuple[str, str, str, str]:
    sides = {1 << i: side for i, side in enumerate(SPLITS)}
    return (
        shown(queries[int(query)].as_py()),
        sides[int(own_Q[query])],
        shown(queries[int(other)].as_py()),
        sides[int(other_side)],
    )
