"""Which words a data set held, in a few kilobytes. Legend of array suffixes: V distinct words."""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from validation.text.scripts import SCRIPTS, main_scripts
from validation.text.words import hash_texts

NUM_BUCKETS = 64  # a script's words are spread over these by hash

NUM_SEEN = 1 << 15  # bits of the map of words seen


@dataclass(frozen=True)
class SeenWords:
    """Which words a column held, over all tasks: a bit for each hash bucket, set if a word fell there."""

    bits: str  # base64 of zlib of NUM_SEEN bits
    occurrences: Mapping[str, int]  # by script of the word
    # words met a single time: their share is what fresh rows may be expected to bring in unknown words (I. J.
    # Good, 1953)
    once: Mapping[str, int]

    def unknown(self, words: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """By script: occurrences in `words` that fall where no word was seen, and all."""
        seen = np.unpackbits(
            np.frombuffer(zlib.decompress(base64.b64decode(self.bits)), dtype=np.uint8)
        ).astype(bool)
        names, count_V = pa.array(list(words), pa.string()), np.fromiter(words.values(), np.int64, len(words))
        strange_V = ~seen[(hash_texts(names) % NUM_SEEN).astype(np.int64)]
        unknown, every = _by_script(names, count_V * strange_V), _by_script(names, count_V)
        return {script: (unknown.get(script, 0), count) for script, count in every.items()}


def word_buckets(words: Mapping[str, int]) -> dict[str, list[int]]:
    """Occurrences by the script of the word and the bucket its hash falls in."""
    names = pa.array(list(words), pa.string())
    script_V, bucket_V = main_scripts(names), (hash_texts(names) % NUM_BUCKETS).astype(np.int64)
    counts = np.zeros((len(SCRIPTS), NUM_BUCKETS), dtype=np.int64)
    np.add.at(counts, (script_V, bucket_V), np.fromiter(words.values(), np.int64, len(words)))
    return {
        script: counts[i].tolist()
        for i, script in sorted(enumerate(SCRIPTS), key=lambda pair: pair[1])
        if counts[i].any()
    }


def _by_script(words: pa.Array, count_V: np.ndarray) -> dict[str, int]:
    """The counts of words summed by script, zeros left out."""
    sums = np.bincount(main_scripts(words), weights=count_V, minlength=len(SCRIPTS)).astype(np.int64)
    return {script: int(n) for script, n in sorted(zip(SCRIPTS, sums, strict=True)) if n}


def see_words(by_task: list[Counter[str]]) -> SeenWords:
    words: Counter[str] = sum(by_task, Counter())
    names, count_V = pa.array(list(words), pa.string()), np.fromiter(words.values(), np.int64, len(words))
    bits = np.zeros(NUM_SEEN, dtype=np.uint8)
    bits[(hash_texts(names) % NUM_SEEN).astype(np.int64)] = 1
    packed = base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()
    return SeenWords(packed, _by_script(names, count_V), _by_script(names, count_V == 1))
