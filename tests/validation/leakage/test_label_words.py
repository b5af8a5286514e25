"""Counts of words."""

import random

import numpy as np
import pytest

from validation.leakage import label_words
from validation.leakage.label_words import WordCounts


@pytest.mark.parametrize("max_words", [label_words.MAX_WORDS, 300])
def test_merged_word_counts_are_those_of_the_whole(monkeypatch, max_words):
    monkeypatch.setattr(label_words, "MAX_WORDS", max_words)
    monkeypatch.setattr(label_words, "_MERGE_WORDS", 16)
    draw = np.random.default_rng(0)
    vocabulary = draw.integers(0, 2**64, 1_000, np.uint64)
    batches = [(draw.choice(vocabulary, 40, replace=False), draw.integers(0, 3, (40, 2))) for _ in range(60)]
    whole = WordCounts(2)
    for batch in batches:
        whole.add(*batch)
    whole.fold()
    for seed in range(5):
        random.Random(seed).shuffle(batches)
        merged = WordCounts(2)
        bounds = [0, 0, 1, *sorted(random.Random(seed).sample(range(1, 60), 4)), 60]
        for start, end in zip(bounds, bounds[1:], strict=False):
            part = WordCounts(2)
            for batch in batches[start:end]:
                part.add(*batch)
            merged.merge(part)
        merged.fold()
        assert (merged.hash_V == whole.hash_V).all() and (merged.count_VL == whole.count_VL).all()
        assert merged.limit == whole.limit and len(merged.hash_V) <= max_words
