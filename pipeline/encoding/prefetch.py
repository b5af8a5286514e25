"""Rows in parts, the next of which is tokenised while the model has the one before.

Shape legend: N rows of a part.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# tokenised in half a second; so many are enough for like lengths and like beginnings to find each other
PART_ROWS = 8_192

Encoded = TypeVar("Encoded")

OnRows = Callable[[np.ndarray], None]  # numbers of rows that something is about to be done with


def encoded_parts(
    table: pa.Table,
    columns: Sequence[str],
    encode: Callable[[pa.Table], Encoded],
    before_each: OnRows | None = None,
) -> Iterator[tuple[np.ndarray, Encoded]]:
    """(row numbers (N,), what `encode` makes of these rows) of each part, all rows once. Rows that are alike
    in the first of the `columns`, then the second and so on, come together, so that what they begin with is
    shared within a part. Errors of `encode` come out as they were raised.

    `before_each`: gets the row numbers of each part before that is encoded, and none is encoded before the
    caller is through with the one before.
    """
    parts = split_rows(table, columns)
    if len(parts) == 1 or before_each is not None:
        for part in parts:
            if before_each is not None:
                before_each(part)
            yield part, encode(chosen_rows(table, part))
        return
    # a thread is enough: tokenizers do most of their work outside Python's lock
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Encoded] = pool.submit(encode, chosen_rows(table, parts[0]))
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            encoded = ahead.result()
            if following is not None:
                ahead = pool.submit(encode, chosen_rows(table, following))
            yield part, encoded


def chosen_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Some rows, by their numbers in rising order where they are all; without a copy then."""
    return table if len(rows) == table.num_rows else table.take(pa.array(rows))


def split_rows(table: pa.Table, columns: Sequence[str]) -> list[np.ndarray]:
    """Row numbers of each part; as they are where that is one."""
    if table.num_rows <= PART_ROWS:
        return [np.arange(table.num_rows)]
    order = (
        pc.sort_indices(table, sort_keys=[(name, "ascending") for name in columns])
        .to_numpy()
        .astype(np.int64)
    )
    return np.split(order, range(PART_ROWS, len(order), PART_ROWS))
