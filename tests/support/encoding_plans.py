"""Judged rows to encode, and changes to what their encoding follows from."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SplitConfig
from pipeline.config.tasks import Task
from pipeline.encoding.encoded_cache import EncodingPlan
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows

TASKS = tuple(
    Task(
        name=name,
        labels=("bad", "fair", "good"),
        relevant_from=1,
        template="Query: {query}\nAd: {ad_title}, {ad_description}\n",
    )
    for name in ("two", "absent", "three")
)
SPLIT = SplitConfig(valid_share=0.2, test_share=0.3)
ENCODE = EncodeConfig(max_tokens=64)


def write_judged(root: Path) -> Path:
    """Two tasks, several files and row groups, rows without label or with a weight, a partition without a
    row.
    """
    for task, counts in {"three": [70, 0, 31], "two": [50]}.items():
        for part, count in enumerate(counts):
            rows = planted_rows(task, count, part)
            for number, row in enumerate(rows):
                row["label"] = None if number % 11 == 5 else row["label"]
                row["weight"] = number / 4 if number % 3 == 0 else None
                row["ad_description"] = "é" * number if number % 2 else None
            path = root / f"task={task}" / f"part-{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path, row_group_size=16)
    return root


def unheard(done: int, total: int) -> None:
    """Progress nobody follows."""


def refuse(done: int, total: int) -> None:
    """Progress that must not be: the rows are encoded already."""
    raise AssertionError("rows were encoded again")


def changed_task(plan: EncodingPlan, **fields: Any) -> EncodingPlan:
    """Change settings of the plan's first task."""
    return replace(plan, tasks=(plan.tasks[0].model_copy(update=fields), *plan.tasks[1:]))


def other_tokenizer(plan: EncodingPlan, tmp_path: Path, name: str, content: str) -> EncodingPlan:
    """Copy the plan's tokenizer folder and change one of its files."""
    folder = Path(shutil.copytree(plan.tokenizer_dir, tmp_path / "other"))
    (folder / name).write_text(content)
    return replace(plan, tokenizer_dir=folder)


def altered_row(plan: EncodingPlan, tmp_path: Path) -> EncodingPlan:
    """Change one query in the plan's data."""
    path = plan.partitions["two"][0]
    table = pq.read_table(path, partitioning=None)
    pq.write_table(
        table.set_column(1, ROW_SCHEMA.field("query"), pa.array(["other", *table["query"].to_pylist()[1:]])),
        path,
    )
    return plan
