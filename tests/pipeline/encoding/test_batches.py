"""Encoded rows become padded tensors with an exact mask."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows, collate, encode_rows, length_batches
from pipeline.schema import ROW_SCHEMA
from tests.support.encoded_lists import encoded_lists

PAD = 99
LISTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]


def rows_of_lists(lists: list[list[int]], task_N: list[int] | None = None) -> EncodedRows:
    count = len(lists)
    return encoded_lists(lists, task_N, list(range(count)), np.linspace(0.5, 2, count).tolist())


def test_batch_is_padded_on_the_right_and_masked() -> None:
    batch = collate(rows_of_lists(LISTS, [0, 1, 0, 2]), np.array([2, 0, 1]), 3, PAD)
    assert batch.input_ids_BS.tolist() == [[9, 10, PAD], [5, 6, 7], [8, PAD, PAD]]
    assert batch.mask_BS.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert batch.task_B.tolist() == [0, 0, 1]
    assert batch.label_B.tolist() == [2, 0, 1]
    assert batch.weight_B.tolist() == [1.5, 0.5, 1.0]
    assert {t.dtype for t in (batch.input_ids_BS, batch.mask_BS, batch.task_B, batch.label_B)} == {
        torch.int64
    }


def test_token_equal_to_the_padding_is_not_masked() -> None:
    batch = collate(rows_of_lists([[PAD, 1, PAD], [2]]), np.array([0, 1]), 1, PAD)
    assert batch.mask_BS.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("task_N", [[0, 1, 2, 0], [0, -1, 0, 0]])
def test_task_id_out_of_range_is_refused(task_N: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not all lie in 0\.\.1"):
        collate(rows_of_lists(LISTS, task_N), np.arange(4), 2, PAD)


def test_only_task_ids_of_the_batch_are_checked() -> None:
    assert collate(rows_of_lists(LISTS, [0, 1, 2, 0]), np.array([0, 1]), 2, PAD).task_B.tolist() == [0, 1]


def test_all_tensors_of_a_batch_move_to_a_device() -> None:
    moved = collate(rows_of_lists(LISTS), np.arange(4), 1, PAD).to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(tensor.is_meta for tensor in tensors)


def test_length_batches_cover_each_row_once_within_the_budget() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        length_N, budget = random.integers(0, 200, random.integers(1, 90)), int(random.integers(1, 2_000))
        batches = length_batches(length_N, budget)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(length_N)))
        for rows in batches:
            assert len(rows) == 1 or length_N[rows].max() * len(rows) <= budget
        longest = [length_N[rows].max() for rows in batches]
        assert longest == sorted(longest, reverse=True)


def test_length_batches_fill_the_budget() -> None:
    batches = length_batches(np.array([10] * 7), 30)
    assert [len(rows) for rows in batches] == [3, 3, 1]


def test_no_rows_give_no_batch() -> None:
    assert length_batches(np.zeros(0, np.int64), 100) == []


class LetterEncoder:
    """Encoder with one id per letter of the query."""

    def encode(self, table: pa.Table, task_name: str) -> list[list[int]]:
        return [[ord(c) for c in query] for query in table.column("query").to_pylist()]


def task(name: str) -> Task:
    return Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"ad_title": "t", "market": "us", **row} for row in rows], ROW_SCHEMA)


def test_rows_are_in_the_order_of_the_tasks() -> None:
    tables = {
        "third": table({"row_id": "z", "query": "cab", "label": 1, "weight": 0.5}),
        "first": table(
            {"row_id": "x", "query": "a", "label": 0}, {"row_id": "y", "query": "", "label": None}
        ),
    }
    encoded = encode_rows(tables, [task("first"), task("second"), task("third")], LetterEncoder())  # type: ignore[arg-type]
    assert len(encoded) == 3
    assert encoded.task_N.tolist() == [0, 0, 2]
    assert encoded.length_N.tolist() == [1, 0, 3]
    assert [encoded.ids_of(row).tolist() for row in range(3)] == [[97], [], [99, 97, 98]]
    assert encoded.labels_of(np.arange(3)).tolist() == [0, -1, 1]
    assert encoded.weights_of(np.array([2, 0])).tolist() == [0.5, 1.0]
    assert encoded.row_ids_of(np.array([2, 0])) == ["z", "x"]
    assert encoded.query_N.to_pylist() == ["a", "", "cab"]
    assert encoded.queries_of(np.array([2, 1])).tolist() == ["cab", ""]


def test_one_long_text_does_not_enlarge_all_rows() -> None:
    long = "x" * 4_096
    rows = table({"row_id": long, "query": long}, *({"row_id": str(n), "query": "q"} for n in range(500)))
    encoded = encode_rows({"a": rows}, [task("a")], LetterEncoder())  # type: ignore[arg-type]
    assert encoded.query_N.nbytes < 10_000 and encoded.row_id_N.nbytes < 10_000
    assert encoded.query_N[0].as_py() == encoded.row_id_N[0].as_py() == long
