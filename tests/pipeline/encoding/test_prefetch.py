"""Rows encoded in parts get the same scores, and encoding is one part ahead of the model."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoding import prefetch
from pipeline.encoding.prefetch import encode_in_parts
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.probabilities import plan_probabilities, predict_multitask_probabilities
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows
from tests.support.scoring_world import World

ROWS = 40


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """Return rows of several parts."""
    monkeypatch.setattr(prefetch, "PART_ROWS", 7)
    return pa.Table.from_pylist(planted_rows("two", ROWS, 3, labeled=False), ROW_SCHEMA)


def test_parts_do_not_change_scores_and_cover_each_row_once(
    tmp_path: Path, tiny_llama: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = World(tmp_path, tiny_llama).scorer().predictor
    task = predictor.tasks[0]
    results: list[dict[str, np.ndarray]] = []
    for part_rows in (7, ROWS):
        monkeypatch.setattr(prefetch, "PART_ROWS", part_rows)
        planned_rows: list[int] = []
        plan = plan_probabilities(predictor, table, task, 512)
        for step in plan:
            planned_rows.extend(step.rows.tolist())
            step.run()
        assert sorted(planned_rows) == list(range(ROWS))
        multitask = predict_multitask_probabilities(MultitaskPredictor(predictor), table, 512)
        results.append(
            {"own task": plan.result, **{f"multitask {name}": value for name, value in multitask.items()}}
        )
    for name, probabilities_NC in results[0].items():
        np.testing.assert_allclose(probabilities_NC, results[1][name], atol=1e-5)


def test_next_part_is_encoded_while_the_caller_works(table: pa.Table) -> None:
    started = [threading.Event() for _ in range(ROWS // 7 + 1)]
    numbers = iter(range(len(started)))

    def encode(part: pa.Table) -> int:
        number = next(numbers)
        started[number].set()
        return number

    for _, number in encode_in_parts(table, ["query"], encode):
        if number + 1 < len(started):
            assert started[number + 1].wait(timeout=30)
        is_far_ahead = any(event.is_set() for event in started[number + 2 :])
        assert not is_far_ahead, "one part ahead at most, so that memory is bounded"


def test_rows_with_equal_queries_share_a_part(table: pa.Table) -> None:
    queries = pa.array([f"query {row % 5}" for row in range(ROWS)])
    table = table.set_column(1, ROW_SCHEMA.field("query"), queries)
    seen: list[str] = []
    for rows, part in encode_in_parts(table, ["query", "ad_description"], lambda part: part):
        assert part.column("query").to_pylist() == queries.take(pa.array(rows)).to_pylist()
        seen += part.column("query").to_pylist()
    assert seen == sorted(queries.to_pylist())


def test_encoder_error_is_raised_unchanged(table: pa.Table) -> None:
    def encode(part: pa.Table) -> int:
        raise ArithmeticError("no such thing")

    with pytest.raises(ArithmeticError, match="no such thing"):
        list(encode_in_parts(table, ["query"], encode))
