"""Labeled rows to encode, and changes to the plan of their encoding."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
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
    """Write rows of two tasks in several files and row groups.

    Some rows have no label, some have a weight, and one file has no row.
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


class RecordingProgress:
    """Progress that records its updates and calls a function after each."""

    def __init__(self, after_update: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.updates: list[tuple[int, int]] = []  # rows done, rows in all
        self.after_update = after_update
        self._total = 0

    @contextlib.contextmanager
    def track(
        self, description: str, total: int | None, unit: str, initial: int = 0
    ) -> Iterator["RecordingProgress"]:
        """Yield itself as the bar."""
        assert total is not None
        self._total = total
        yield self

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Record an update."""
        self.updates.append((done, self._total))
        self.after_update(done, self._total)


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
