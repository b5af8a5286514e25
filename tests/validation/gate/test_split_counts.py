"""Counts of rows by split and class."""

import pyarrow as pa

from pipeline.config.splits import SplitConfig
from pipeline.data.splits import assign_splits
from validation.gate import split_counts
from validation.gate.split_counts import count_classes, missing_classes

SPLITS = SplitConfig(valid_share=0.3, test_share=0.3)


def rows(queries, labels):
    """Build the two columns that are read."""
    return pa.table({"query": queries, "label": pa.array(labels, pa.int32())})


def test_counts_rows_by_split_and_class(task):
    queries = [f"q{i}" for i in range(200)]
    splits = assign_splits(queries, SPLITS).tolist()
    table = rows(queries, [0] * 199 + [None])
    counts = count_classes([table.slice(0, 50), table.slice(50)], task, SPLITS)
    splits.pop()
    assert counts == {name: (splits.count(name), 0) for name in ("train", "valid", "test")}
    message = missing_classes(task, counts)
    assert (
        message.startswith(f"task={task.name}: ") and f"test 0 relevant and {splits.count('test')}" in message
    )


def test_reading_stops_when_each_split_has_both_classes(task, monkeypatch):
    monkeypatch.setattr(split_counts, "SLICE_ROWS", 100)

    def tables():
        yield rows([f"q{i // 2}" for i in range(100)], [0, task.relevant_from] * 50)
        raise AssertionError("read on")

    assert missing_classes(task, count_classes(tables(), task, SPLITS)) is None
