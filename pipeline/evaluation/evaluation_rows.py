"""Test rows that versions are compared on."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.config.splits import SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.reader import read_split
from pipeline.errors import DataRefusedError

NO_TASK_WITH_BOTH_CLASSES = (
    "no task has both relevant and irrelevant rows in the test split; add queries or raise split.test_share"
)


def labeled_test_rows(accepted_dir: Path, tasks: Sequence[Task], split: SplitConfig) -> dict[str, pa.Table]:
    """Return the test rows of each task that has both classes.

    Raises:
        DataRefusedError: No task has both classes.
    """
    tables = read_split(accepted_dir, tasks, split, "test")
    labeled = {
        task.name: tables[task.name]
        for task in tasks
        if task.name in tables and has_both_classes(tables[task.name], task)
    }
    if not labeled:
        raise DataRefusedError(NO_TASK_WITH_BOTH_CLASSES)
    return labeled


def has_both_classes(table: pa.Table, task: Task) -> bool:
    """Return True if a table has relevant and irrelevant rows."""
    relevant = table.column("label").to_numpy() >= task.relevant_from
    return bool(relevant.any() and not relevant.all())
