"""Contract rows of one side of the split, as tables in memory."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.splits import Split, SplitConfig
from pipeline.config.tasks import Task
from pipeline.reader import find_partitions, read_partition
from pipeline.split import split_rows


def read_split(root: Path, tasks: Sequence[Task], config: SplitConfig, side: Split) -> dict[str, pa.Table]:
    """The judged rows of one side by task name, in the order of their files; tasks without a row are left out."""
    tables: dict[str, pa.Table] = {}
    for name, paths in find_partitions(root, tasks).items():
        whole = pa.concat_tables([read_partition(path) for path in paths])
        judged = whole.filter(pc.is_valid(whole.column("label")))
        rows = judged.filter(pa.array(split_rows(judged.column("query").to_pylist(), config) == side))
        if rows.num_rows:
            tables[name] = rows
    return tables
