"""Which rows train, which tune, which test: a function of the query alone, so a query never changes sides as data grows."""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.frozen import Frozen

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class SplitConfig(Frozen):
    """Shares of the query space; what is left of 1 trains."""

    valid_share: float = Field(default=0.1, gt=0, lt=1)  # for calibration, thresholds and early decisions
    test_share: float = Field(default=0.2, gt=0, lt=1)  # for the figures that are reported, nothing else

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> "SplitConfig":
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share + test_share must stay below 1: nothing would be left to train on")
        return self


def normalise_query(query: str) -> str:
    """The form under which two queries are one: Unicode NFKC, case-folded, white space collapsed."""
    # taken apart before folding and put together after it: folded whole, some Greek letters and their capitals would differ
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", query).casefold()).split())


def query_position(query: str) -> float:
    """Where the normalised query falls in [0, 1): blake2b, uniform, the same on every machine and for ever."""
    digest = hashlib.blake2b(normalise_query(query).encode("utf-8", "surrogatepass"), digest_size=8, person=b"relevance-split").digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(query: str, config: SplitConfig) -> Split:
    """The side of one query."""
    position = query_position(query)
    if position < config.test_share:
        return "test"
    return "valid" if position < config.test_share + config.valid_share else "train"


def split_rows(queries: Iterable[str], config: SplitConfig) -> np.ndarray:
    """The side of each row, as an array of strings (N,); each distinct query is hashed once."""
    known: dict[str, Split] = {}
    sides = [known.get(query) or known.setdefault(query, split_of(query, config)) for query in queries]
    return np.asarray(sides, dtype="<U5")
