"""Rows of each split and class: what training, calibration and evaluation need of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.splits import assign_splits

SLICE_ROWS = 4_096  # hashed at a time: nearly always enough to find every class in every split

ClassCounts = Mapping[str, tuple[int, int]]  # rows that are not relevant and rows that are, by split


def count_classes(tables: Iterable[pa.Table], task: Task, config: SplitConfig) -> ClassCounts:
    """Count the labeled rows of a task by split and class, but for train rows of weight 0.

    The weight counts in the train split alone: the others are evaluated without it. Counting stops as soon as
    no count is 0, so counts are complete only if one is.

    Args:
        tables: Contract rows of the task.
        task: Decides from which label on a row is relevant.
        config: Shares of the splits.
    """
    counts_SC = np.zeros((len(SPLITS), 2), dtype=np.int64)
    for table in _slices(tables):
        split_M = assign_splits(table["query"].to_pylist(), config)
        class_M = table["label"].to_numpy() >= task.relevant_from
        weighs_M = pc.fill_null(table["weight"], 1.0).to_numpy() > 0
        for index, split in enumerate(SPLITS):
            counted_M = (split_M == split) & (weighs_M | (split != "train"))
            counts_SC[index] += np.bincount(class_M[counted_M], minlength=2)
        if counts_SC.all():
            break
    return {split: (int(counts[0]), int(counts[1])) for split, counts in zip(SPLITS, counts_SC, strict=True)}


def missing_classes(task: Task, counts: ClassCounts) -> str | None:
    """Return a message if a split lacks rows of a class, None if all have both."""
    if all(all(of_split) for of_split in counts.values()):
        return None
    listed = ", ".join(
        f"{split} {relevant:,} relevant and {irrelevant:,} irrelevant"
        for split, (irrelevant, relevant) in counts.items()
    )
    return (
        f"task={task.name}: accepted rows are missing in a split: {listed}; each split needs rows of both "
        "classes, in train with a weight above 0: add rows of other queries, or take the task out of `tasks`"
    )


def _slices(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the labeled rows in slices of SLICE_ROWS."""
    for table in tables:
        labeled = table.filter(table["label"].is_valid())
        for start in range(0, labeled.num_rows, SLICE_ROWS):
            yield labeled.slice(start, SLICE_ROWS)
