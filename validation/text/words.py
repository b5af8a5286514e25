"""Texts as words, a column at a time: what leakage and drift compare. Legend of array suffixes: V distinct
words, P pairs of a row and a word.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.reader import naming_damage, open_partition
from pipeline.errors import DamagedInputError
from validation.text.hashing import hash_column

BATCH_ROWS = 32_768

# rows of a task whose words are looked at; shares of words are then known to a thousandth
MAX_TEXT_ROWS = 200_000

MAX_CHARS = 4_096  # a text is looked at so far; models read less, and one page may hold a megabyte

_ACCENTS = "[\u0300-\u036f]+"  # of Latin, Greek and Cyrillic; the marks of other scripts make other words

_GAP = r"[^\p{L}\p{M}\p{N}]+"

# Chinese and Japanese put no space between words: each character counts as one.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*)"

Source: TypeAlias = "pa.Table | Sequence[Path]"


def read_batches(source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The named columns of a table or of parquet files, at most BATCH_ROWS rows at a time.

    DamagedInputError: a file is not whole parquet, holds text that is not UTF-8, or lacks a column.
    """
    if isinstance(source, pa.Table):
        yield from source.select(list(columns)).to_batches(max_chunksize=BATCH_ROWS)
        return
    for path in source:
        with open_partition(path) as file:
            absent = sorted(set(columns) - set(file.schema_arrow.names))
            if absent:
                raise DamagedInputError(
                    f"{path} has no column {', '.join(absent)}; run `relevance validate` to see all that "
                    "is wrong with it"
                )
            with naming_damage(path):
                for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                    batch.validate(full=True)
                    yield batch.select(list(columns))


def drawn_share(source: Source) -> float:
    """The share of rows whose words are looked at."""
    if isinstance(source, pa.Table):
        return min(1.0, MAX_TEXT_ROWS / max(source.num_rows, 1))
    num_rows = 0
    for path in source:
        with open_partition(path) as file:
            num_rows += file.metadata.num_rows
    return min(1.0, MAX_TEXT_ROWS / max(num_rows, 1))


def drawn(batch: pa.RecordBatch, share: float) -> pa.RecordBatch:
    """About that share of the rows, by the hash of row_id: the same ones however they lie in files."""
    return (
        batch
        if share >= 1
        else batch.filter(pa.array(hash_column(batch["row_id"]) < np.uint64(int(share * 2**64))))
    )


def fold_texts(texts: pa.Array) -> pa.Array:
    """Texts without case, accents, punctuation and runs of white space; null stays null. Letters stay taken
    apart (NFKD).
    """
    # not pc.utf8_normalize: in pyarrow 25 it is slower than this, and its NFC does not compose
    apart = [None if text is None else _taken_apart(text) for text in texts.to_pylist()]
    folded = pc.replace_substring_regex(
        pc.replace_substring_regex(pa.array(apart, pa.string()), _ACCENTS, ""), _GAP, " "
    )
    return pc.ascii_trim_whitespace(folded)


def _taken_apart(text: str) -> str:
    text = text[:MAX_CHARS]
    return text.lower() if text.isascii() else unicodedata.normalize("NFKD", text).casefold()


def split_words(folded: pa.Array) -> tuple[np.ndarray, pa.DictionaryArray]:
    """The words of folded texts, one after the other: the row of each (P,) and the words as a dictionary
    array (P,).
    """
    spaced = pc.ascii_trim_whitespace(pc.replace_substring_regex(folded.fill_null(""), _UNSPACED, r" \1 "))
    words = pc.ascii_split_whitespace(spaced)
    row_P, flat = pc.list_parent_indices(words).to_numpy(), words.flatten()
    real_P = pc.not_equal(flat, "")
    return row_P[real_P.to_numpy(zero_copy_only=False)], flat.filter(real_P).dictionary_encode()


def hash_texts(texts: pa.Array) -> np.ndarray:
    """64 bits of blake2b for each text, the same on every machine."""
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts.to_pylist()
    )
    return np.frombuffer(digests, dtype="<u8")


def shown(text: str) -> str:
    """A folded word as people write it."""
    return unicodedata.normalize("NFC", text)
