"""Synthetic contract rows in any number, written in bounded memory; equal arguments give equal bytes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import ROW_SCHEMA

STARTS, ENDS = ("ru", "be", "ti", "lo", "ka", "mi", "so", "ven"), ("n", "lt", "gar", "ndo", "ra", "x")
WORDS = np.array([f"{start}{end}" for start in STARTS for end in ENDS])
ROWS_PER_FILE = 250_000
BATCH_ROWS = 50_000


def write_synthetic_rows(
    folder: Path, num_rows: int, tasks: tuple[str, ...], seed: int = 17, rows_per_file: int = ROWS_PER_FILE
) -> None:
    """Write task=<name>/part-<n>.parquet: 35 words per row, two rows per query, one bad row in 10,000."""
    for index, task in enumerate(tasks):
        (folder / f"task={task}").mkdir(parents=True, exist_ok=True)
        share = num_rows // len(tasks)
        for part, start in enumerate(range(0, share, rows_per_file)):
            path = folder / f"task={task}" / f"part-{part:04d}.parquet"
            with pq.ParquetWriter(path, ROW_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
                for first in range(start, min(start + rows_per_file, share), BATCH_ROWS):
                    rows = min(BATCH_ROWS, share - first)
                    writer.write_table(
                        made_up_rows(task, first, rows, np.random.default_rng((seed, index, first)))
                    )


def made_up_rows(task: str, first: int, num_rows: int, draw: np.random.Generator) -> pa.Table:
    """Return a batch of rows, numbered from `first`."""
    numbers = np.arange(first, first + num_rows)
    query = [
        f"{words} {number // 2}"
        for words, number in zip(phrases(draw, num_rows, 3), numbers.tolist(), strict=True)
    ]
    query[1::2] = query[: len(query) // 2 * 2 : 2]
    label = draw.integers(0, 3, num_rows).astype(np.int32)
    label[numbers % 10_000 == 9_999] = 9
    texts = {
        "query": query,
        "ad_title": phrases(draw, num_rows, 8),
        "ad_description": phrases(draw, num_rows, 24),
    }
    columns = {
        "row_id": [f"{task}-{number}" for number in numbers.tolist()],
        **texts,
        "market": ["us"] * num_rows,
        "label": label,
    }
    return pa.table(
        [pa.array(columns.get(f.name, [None] * num_rows), f.type) for f in ROW_SCHEMA], schema=ROW_SCHEMA
    )


def phrases(draw: np.random.Generator, num_rows: int, num_words: int) -> list[str]:
    """Return random phrases of `num_words` words."""
    return [" ".join(row) for row in WORDS[draw.integers(0, len(WORDS), (num_rows, num_words))].tolist()]
