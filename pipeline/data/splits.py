"""Which rows train, which tune, which test: a function of the query alone, so a query never changes sides as
data grows.
"""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from pipeline.config.splits import Split, SplitConfig

# copied for each query: half the cost of a new one
_BLAKE2B = hashlib.blake2b(digest_size=8, person=b"relevance-split")


def normalise_query(query: str) -> str:
    """The form under which two queries are one: Unicode NFKC, case-folded, white space collapsed."""
    if query.isascii():  # the same, at a third of the cost
        return " ".join(query.lower().split())
    # taken apart before folding and put together after it: folded whole, some Greek letters and their
    # capitals would differ
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", query).casefold()).split())


def query_positions(queries: Iterable[str]) -> np.ndarray:
    """Where each normalised query falls in [0, 1) (N,): blake2b, uniform, the same on every machine and for
    ever.
    """
    digests = []
    for query in queries:
        digest = _BLAKE2B.copy()
        digest.update(normalise_query(query).encode("utf-8", "surrogatepass"))
        digests.append(digest.digest())
    return np.asarray(np.frombuffer(b"".join(digests), dtype=">u8") / 2.0**64)


def split_of(query: str, config: SplitConfig) -> Split:
    """The side of one query."""
    side: Split = split_rows([query], config)[0].item()
    return side


def split_rows(queries: Iterable[str], config: SplitConfig) -> np.ndarray:
    """The side of each row, as an array of strings (N,); each distinct query is hashed once."""
    number_of: dict[str, int] = {}
    number_N = np.fromiter((number_of.setdefault(query, len(number_of)) for query in queries), dtype=np.int64)
    position_Q = query_positions(number_of)
    side_Q = np.where(
        position_Q < config.test_share,
        "test",
        np.where(position_Q < config.test_share + config.valid_share, "valid", "train"),
    )
    return side_Q.astype("<U5")[number_N]
