"""Encode rows in parts; the next part is encoded while the model processes the current one.

Shape legend: N rows of a part.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Half a second of tokenization. A part this large has enough rows of similar length and with equal prefixes.
PART_ROWS = 8_192

Encoded = TypeVar("Encoded")


def encode_in_parts(
    table: pa.Table,
    columns: Sequence[str],
    encode: Callable[[pa.Table], Encoded],
) -> Iterator[tuple[np.ndarray, Encoded]]:
    """Yield row numbers (N,) and encoded rows of each part; each row is in one part.

    Args:
        table: Rows.
        columns: Sort keys of the rows before they are split, so that rows with equal prefixes share a part.
        encode: Returns the encoded rows of a part.

    Raises:
        Exception: As raised by `encode`.
    """
    parts = part_row_numbers(table, columns)
    if len(parts) == 1:
        yield parts[0], encode(table)
        return
    # a thread suffices because tokenizers release the GIL
    with ThreadPoolExecutor(1) as pool:
        pending: Future[Encoded] = pool.submit(encode, select_rows(table, parts[0]))
        for part, next_part in zip(parts, [*parts[1:], None], strict=True):
            encoded = pending.result()
            if next_part is not None:
                pending = pool.submit(encode, select_rows(table, next_part))
            yield part, encoded


def select_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return the rows with these numbers.

    If there are as many numbers as rows, they must be all rows in order; then nothing is copied.
    """
    return table if len(rows) == table.num_rows else table.take(pa.array(rows))


def part_row_numbers(table: pa.Table, columns: Sequence[str]) -> list[np.ndarray]:
    """Return row numbers in parts of at most PART_ROWS, sorted by `columns` if there are several parts."""
    if table.num_rows <= PART_ROWS:
        return [np.arange(table.num_rows)]
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in columns])
    order_N = order.to_numpy().astype(np.int64)
    return np.split(order_N, range(PART_ROWS, len(order_N), PART_ROWS))
