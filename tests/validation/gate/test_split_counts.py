"""Counts of rows by split and class."""

import pyarrow as pa

from pipeline.config.splits import SplitConfig
from pipeline.data.splits import assign_splits
from validation.gate import split_counts
from validation.gate.split_counts import count_classes, missing_classes

SPLITS = SplitConfig(valid_share=0.3, test_share=0.3)


def rows(queries, labels, weights=None):
    """Build the columns that are read."""
    weight = pa.array(weights or [None] * len(queries), pa.float32())
    return pa.table({"query": queries, "label": pa.array(labels, pa.int32()), "weight": weight})


def test_train_rows_without_weight_train_nothing(task):
    queries = [f"q{i // 2}" for i in range(400)]
    labels = [0, task.relevant_from] * 200
    for weights, missing in (([0.0, 0.0], [0, 1]), ([1.0, 0.0], [1]), ([0.0, None], [0]), ([1e-3, 2.0], [])):
        counts = count_classes([rows(queries, labels, weights * 200)], task, SPLITS)
        assert [index for index in (0, 1) if not counts["train"][index]] == missing
        assert all(counts["valid"]) and all(counts["test"])
        assert bool(missing_classes(task, counts)) == bool(missing)


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
