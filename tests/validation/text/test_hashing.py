"""Hashes of text columns."""

import numpy as np
import pyarrow as pa
import pytest

from validation.text import hashing
from validation.text.hashing import hash_column

NEAR = [
    "a",
    "b",
    "ab",
    "ba",
    "a" * 8,
    "a" * 9,
    "a" * 16,
    "aaaaaaab",
    "baaaaaaa",
    "0" * 7,
    "0" * 8,
    "\0",
    "\0\0",
    "a\0",
    "12345678abcdefgh",
    "abcdefgh12345678",
    "é",
    "e",
    "𝔞",
]


def test_hashes_match_recorded_values() -> None:
    # cached verdicts of earlier runs hold these hashes
    hashes = hash_column(
        pa.array(["", "a", "red shoes", "a text of more than two words of eight bytes", None])
    )
    assert hashes.tolist() == [0, 15818834084057556226, 16649925651580100903, 8548792605767210132, 0]


def test_similar_texts_have_different_hashes() -> None:
    numbers = [f"query {n}" for n in range(200_000)] + [f"{n} query" for n in range(200_000)]
    hashes = hash_column(pa.array(NEAR + numbers))
    assert len(np.unique(hashes)) == len(NEAR) + len(numbers)
    assert all(
        len(np.unique(hashes >> np.uint64(shift) & np.uint64(0xFF))) == 256 for shift in range(0, 64, 8)
    )


@pytest.mark.parametrize("block_words", [1, 2, 7, 1 << 15])
def test_hash_does_not_depend_on_chunks_offsets_or_blocks(
    block_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", *NEAR, "x" * 1_000, *NEAR[::-1], ""]
    alone = [int(hash_column(pa.array([text]))[0]) for text in texts]
    monkeypatch.setattr(hashing, "BLOCK_WORDS", block_words)
    chunked = pa.chunked_array([texts[:5], [], texts[5:]])
    for column in (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(["zz", *texts]).slice(1),
        chunked,
    ):
        assert hash_column(column).tolist() == alone
    assert hash_column(pa.array([], pa.string())).tolist() == []
