"""The test rows that two versions are compared on."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.config.run import RunConfig
from pipeline.config.tasks import Task
from pipeline.data.reader import read_split
from pipeline.errors import DataRefusedError


def judged_test_rows(config: RunConfig) -> Mapping[str, pa.Table]:
    """Test rows of the tasks that have both classes there. DataRefusedError: none has."""
    tables = read_split(config.accepted_dir, config.tasks, config.split, "test")
    found = {
        task.name: tables[task.name]
        for task in config.tasks
        if task.name in tables and has_both(tables[task.name], task)
    }
    if not found:
        raise DataRefusedError(
            "no task has both relevant and irrelevant rows in the test split; add queries or raise "
            "split.test_share"
        )
    return found


def has_both(table: pa.Table, task: Task) -> bool:
    """Whether there are relevant and irrelevant rows."""
    relevant = table.column("label").to_numpy() >= task.relevant_from
    return bool(relevant.any() and not relevant.all())
