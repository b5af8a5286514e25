"""The lexical floor: its rows, its batches and its probabilities."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.tasks import Task
from pipeline.evaluation import lexical_baseline
from pipeline.evaluation.lexical_baseline import draw_train_rows, lexical_probability
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows

TASK = Task(name="two", labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")


def table_of(num_rows: int, seed: int = 1) -> pa.Table:
    return pa.Table.from_pylist(planted_rows("two", num_rows, seed), schema=ROW_SCHEMA)


def test_baseline_without_training_rows_is_one_half() -> None:
    assert lexical_probability(TASK, None, table_of(2), 0).tolist() == [0.5, 0.5]
    assert lexical_probability(TASK, table_of(0), table_of(2), 0).tolist() == [0.5, 0.5]
    assert lexical_probability(TASK, table_of(3), table_of(0), 0).tolist() == []


def test_drawn_rows_do_not_depend_on_their_order() -> None:
    table = table_of(600)
    drawn = draw_train_rows(table, 101)
    shuffled = table.take(np.random.default_rng(0).permutation(600))
    assert drawn.num_rows == 101 and draw_train_rows(shuffled, 101).equals(drawn)
    assert draw_train_rows(pa.concat_tables([table.slice(300), table.slice(0, 300)]), 101).equals(drawn)
    assert len(set(drawn["query"].to_pylist())) == 51, "queries are drawn whole, but for the last"
    assert draw_train_rows(table, 40).equals(drawn.slice(0, 40)), "fewer rows are some of the same"


def test_all_rows_keep_their_order_below_the_limit() -> None:
    table = table_of(60)
    assert draw_train_rows(table, 60) is table


def test_probabilities_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = table_of(200), table_of(90, seed=2)
    expected = lexical_probability(TASK, train, test, 0)
    assert len(set(expected.tolist())) > 5
    monkeypatch.setattr(lexical_baseline, "_BATCH_TEXTS", 7)
    monkeypatch.setattr(lexical_baseline, "_BATCH_ROWS", 11)
    assert lexical_probability(TASK, train, test, 0).tolist() == expected.tolist()
