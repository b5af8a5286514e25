"""Words of text columns, which leakage and drift compare.

Shape legend: P pairs of a row and a word.
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

from pipeline.data.parquet_batches import BatchLimits
from pipeline.data.reader import check_schema, open_partition, read_rows
from validation.text.hashing import hash_column

BATCH_ROWS = 32_768

# rows of a task whose words are counted; enough for shares to within a thousandth
MAX_TEXT_ROWS = 200_000

MAX_CHARS = 4_096  # of a text that are read; models read fewer, and one page may hold a megabyte

_ACCENTS = "[\u0300-\u036f]+"  # of Latin, Greek and Cyrillic; marks of other scripts distinguish words

_SEPARATORS = r"[^\p{L}\p{M}\p{N}]+"

# Chinese and Japanese put no space between words: each character counts as one word
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*)"

RowSource: TypeAlias = "pa.Table | Sequence[Path]"  # rows in memory, or parquet files


def read_columns(source: RowSource, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most BATCH_ROWS rows with the named columns.

    Raises:
        DamagedInputError: A file is not whole parquet, or holds text that is not UTF-8.
        DataRefusedError: A file does not follow the row contract.
    """
    if isinstance(source, pa.Table):
        yield from source.select(list(columns)).to_batches(max_chunksize=BATCH_ROWS)
        return
    for path in source:
        with open_partition(path) as file:
            check_schema(file, path)
            for table in read_rows(file, path, columns, limits=BatchLimits(BATCH_ROWS)):
                yield from table.to_batches()


def source_parts(source: RowSource) -> Sequence[RowSource]:
    """Split rows into parts that are read apart: one for each file, and a table as it is."""
    return [source] if isinstance(source, pa.Table) else [[path] for path in source]


def sampling_share(source: RowSource) -> float:
    """Return the share of rows whose words are counted."""
    if isinstance(source, pa.Table):
        return min(1.0, MAX_TEXT_ROWS / max(source.num_rows, 1))
    num_rows = 0
    for path in source:
        with open_partition(path) as file:
            num_rows += file.metadata.num_rows
    return min(1.0, MAX_TEXT_ROWS / max(num_rows, 1))


def sample_rows(batch: pa.RecordBatch, share: float) -> pa.RecordBatch:
    """Return about that share of the rows, chosen by the hash of row_id alone."""
    if share >= 1:
        return batch
    return batch.filter(pa.array(hash_column(batch["row_id"]) < np.uint64(int(share * 2**64))))


def fold_texts(texts: pa.Array) -> pa.Array:
    """Remove case, accents, punctuation and repeated white space; null stays null.

    Letters stay decomposed (NFKD).
    """
    # not pc.utf8_normalize: in pyarrow 25 it is slower than this, and its NFC does not compose
    decomposed = [None if text is None else _decompose(text) for text in texts.to_pylist()]
    without_accents = pc.replace_substring_regex(pa.array(decomposed, pa.string()), _ACCENTS, "")
    return pc.ascii_trim_whitespace(pc.replace_substring_regex(without_accents, _SEPARATORS, " "))


def _decompose(text: str) -> str:
    text = text[:MAX_CHARS]
    return text.lower() if text.isascii() else unicodedata.normalize("NFKD", text).casefold()


def split_words(folded: pa.Array) -> tuple[np.ndarray, pa.DictionaryArray]:
    """Split folded texts into words.

    Returns:
        The row of each word (P,), and the words as a dictionary array (P,).
    """
    spaced = pc.ascii_trim_whitespace(pc.replace_substring_regex(folded.fill_null(""), _UNSPACED, r" \1 "))
    words = pc.ascii_split_whitespace(spaced)
    row_P, flat = pc.list_parent_indices(words).to_numpy(), words.flatten()
    nonempty_P = pc.not_equal(flat, "")
    return row_P[nonempty_P.to_numpy(zero_copy_only=False)], flat.filter(nonempty_P).dictionary_encode()


def hash_texts(texts: pa.Array) -> np.ndarray:
    """Return 64 bits of blake2b for each text, equal on every machine."""
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts.to_pylist()
    )
    return np.frombuffer(digests, dtype="<u8")


def compose(text: str) -> str:
    """Return folded text with its letters composed (NFC), as people write it."""
    return unicodedata.normalize("NFC", text)
