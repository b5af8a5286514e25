"""Rows of a table in parquet files of random sizes."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_random_files(table: pa.Table, folder: Path, seed: int) -> list[Path]:
    """Write the rows in order; one file is empty, and one holds one row. Return the paths in order."""
    draw = random.Random(seed)
    single = draw.randrange(table.num_rows)
    cuts = [single, single + 1, *draw.sample(range(table.num_rows), draw.randrange(8))]
    bounds = sorted([0, *cuts, draw.choice(cuts), table.num_rows])
    folder.mkdir(parents=True)
    paths = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        paths.append(folder / f"part-{number:02}.parquet")
        pq.write_table(table.slice(start, end - start), paths[-1], row_group_size=draw.randint(50, 500))
    return paths
