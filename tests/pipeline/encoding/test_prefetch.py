"""Rows tokenised part by part, one part ahead of the model: the same scores, each row once, and errors where
they belong.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoding import prefetch as read_ahead
from pipeline.encoding.prefetch import encoded_parts
from pipeline.inference.multitask_predictor import AllTasksJudge
from pipeline.inference.probabilities import judge_all_tasks, judge_rows
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows
from tests.support.scoring_world import World

ROWS = 40


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """Rows of several parts."""
    monkeypatch.setattr(read_ahead, "PART_ROWS", 7)
    return pa.Table.from_pylist(planted_rows("two", ROWS, 3, labelled=False), ROW_SCHEMA)


def test_scores_of_parts_are_those_of_the_whole_and_each_row_is_told_once(
    tmp_path: Path, tiny_llama: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = World(tmp_path, tiny_llama).scorer().judge
    sides: list[Any] = []
    for part_rows in (7, ROWS):
        monkeypatch.setattr(read_ahead, "PART_ROWS", part_rows)
        told: list[int] = []
        one = judge_rows(
            judge, table, judge.tasks[0], 512, lambda rows, told=told: told.extend(rows.tolist())
        )  # type: ignore[misc]
        assert sorted(told) == list(range(ROWS))
        sides.append(
            {judge.tasks[0].name: one}
            | {f"all {k}": v for k, v in judge_all_tasks(AllTasksJudge(judge), table, 512).items()}
        )
    for name, of_parts in sides[0].items():
        np.testing.assert_allclose(of_parts, sides[1][name], atol=1e-5)


def test_the_next_part_is_encoded_while_the_caller_has_one(table: pa.Table) -> None:
    begun = [threading.Event() for _ in range(ROWS // 7 + 1)]
    numbers = iter(range(len(begun)))

    def encode(part: pa.Table) -> int:
        number = next(numbers)
        begun[number].set()
        return number

    for _, number in encoded_parts(table, ["query"], encode):
        if number + 1 < len(begun):
            assert begun[number + 1].wait(timeout=30)
        assert not any(one.is_set() for one in begun[number + 2 :]), (
            "one part ahead and no more: memory is bounded"
        )


def test_without_reading_ahead_each_part_is_told_before_it_is_encoded_and_after_the_one_before_it_was_used(
    table: pa.Table,
) -> None:
    happened: list[str] = []

    def encode(part: pa.Table) -> int:
        happened.append("encode")
        return part.num_rows

    for rows, number in encoded_parts(
        table, ["query"], encode, lambda rows: happened.append(f"tell {len(rows)}")
    ):
        assert len(rows) == number
        happened.append("use")
    assert happened == [
        f"tell {size}" if turn == 0 else ("encode", "use")[turn - 1]
        for size in [7] * 5 + [5]
        for turn in range(3)
    ]


def test_rows_that_begin_alike_come_together(table: pa.Table) -> None:
    queries = pa.array([f"query {row % 5}" for row in range(ROWS)])
    table = table.set_column(1, ROW_SCHEMA.field("query"), queries)
    seen: list[str] = []
    for rows, part in encoded_parts(table, ["query", "ad_description"], lambda part: part):
        assert part.column("query").to_pylist() == queries.take(pa.array(rows)).to_pylist()
        seen += part.column("query").to_pylist()
    assert seen == sorted(queries.to_pylist())


def test_an_error_of_the_encoder_comes_out_as_it_was_raised(table: pa.Table) -> None:
    def encode(part: pa.Table) -> int:
        raise ArithmeticError("no such thing")

    with pytest.raises(ArithmeticError, match="no such thing"):
        list(encoded_parts(table, ["query"], encode))
