"""Compact set of the words of a data set.

Shape legend: V distinct words.
"""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from validation.text.scripts import SCRIPTS, dominant_scripts
from validation.text.words import hash_texts

NUM_BUCKETS = 64  # hash buckets of a script's words

NUM_SEEN_BITS = 1 << 15  # size of the bit map of seen words


class UnknownWords(NamedTuple):
    """Occurrences of words of one script."""

    unknown: int  # of words that were never seen
    all: int


@dataclass(frozen=True)
class SeenWords:
    """Words of a column over all tasks, as a bit per hash bucket: set if the bucket has a word."""

    bits: str  # base64 of zlib of NUM_SEEN_BITS bits
    occurrences: Mapping[str, int]  # by script of the word
    # words that occurred once, by script: their share estimates the share of unknown words in fresh rows
    # (I. J. Good, Biometrika 40, 1953)
    once: Mapping[str, int]

    def count_unknown(self, words: Mapping[str, int]) -> dict[str, UnknownWords]:
        """Count the occurrences in `words` that were never seen, by script."""
        packed = np.frombuffer(zlib.decompress(base64.b64decode(self.bits)), dtype=np.uint8)
        is_seen = np.unpackbits(packed).astype(bool)
        names, count_V = _as_arrays(words)
        is_unknown_V = ~is_seen[_bucket(names, NUM_SEEN_BITS)]
        unknown, total = _sum_by_script(names, count_V * is_unknown_V), _sum_by_script(names, count_V)
        return {script: UnknownWords(unknown.get(script, 0), count) for script, count in total.items()}


def build_seen_words(words_by_task: Sequence[Counter[str]]) -> SeenWords:
    """Build the set of the words of all tasks."""
    names, count_V = _as_arrays(sum(words_by_task, Counter()))
    bits = np.zeros(NUM_SEEN_BITS, dtype=np.uint8)
    bits[_bucket(names, NUM_SEEN_BITS)] = 1
    packed = base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()
    return SeenWords(packed, _sum_by_script(names, count_V), _sum_by_script(names, count_V == 1))


def count_word_buckets(words: Mapping[str, int]) -> dict[str, list[int]]:
    """Count occurrences by the script of the word and its hash bucket."""
    names, count_V = _as_arrays(words)
    counts = np.zeros((len(SCRIPTS), NUM_BUCKETS), dtype=np.int64)
    np.add.at(counts, (dominant_scripts(names), _bucket(names, NUM_BUCKETS)), count_V)
    return {
        script: counts[i].tolist()
        for i, script in sorted(enumerate(SCRIPTS), key=lambda pair: pair[1])
        if counts[i].any()
    }


def _as_arrays(words: Mapping[str, int]) -> tuple[pa.Array, np.ndarray]:
    return pa.array(list(words), pa.string()), np.fromiter(words.values(), np.int64, len(words))


def _bucket(words: pa.Array, num_buckets: int) -> np.ndarray:
    return (hash_texts(words) % num_buckets).astype(np.int64)


def _sum_by_script(words: pa.Array, count_V: np.ndarray) -> dict[str, int]:
    """Sum counts by the script of the word, without zeros."""
    sums = np.bincount(dominant_scripts(words), weights=count_V, minlength=len(SCRIPTS)).astype(np.int64)
    return {script: int(n) for script, n in sorted(zip(SCRIPTS, sums, strict=True)) if n}
