"""Encoded rows of token ids that a test writes down."""

import itertools
from collections.abc import Sequence

import pyarrow as pa

from pipeline.encoding.batches import ENCODED_SCHEMA, EncodedRows, RowChunk


def encoded_lists(
    lists: Sequence[Sequence[int]],
    task_N: Sequence[int] | None = None,
    label_N: Sequence[int] | None = None,
    weight_N: Sequence[float] | None = None,
) -> EncodedRows:
    """Return rows with the row_ids r0, r1, ... and the query "q"; neighbours of one task are a chunk."""
    count = len(lists)
    columns = [
        pa.array([f"r{n}" for n in range(count)], pa.string()),
        pa.array(["q"] * count, pa.string()),
        pa.array([list(ids) for ids in lists], pa.list_(pa.int32())),
        pa.array(list(label_N or [0] * count), pa.int32()),
        pa.array(list(weight_N or [1.0] * count), pa.float32()),
    ]
    batch = pa.record_batch(columns, schema=ENCODED_SCHEMA)
    chunks, start = [], 0
    for task, members in itertools.groupby(task_N or [0] * count):
        length = len(list(members))
        chunks.append(RowChunk.from_batch(task, batch.slice(start, length)))
        start += length
    return EncodedRows(chunks)
