"""Logits of one task: equal to those of each row alone, with fewer tokens computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from pipeline.encoding.batches import MIN_LENGTH_RATIO, length_batches
from pipeline.inference import task_predictor
from pipeline.inference.prefix_groups import common_prefix_length, find_distinct, group_by_prefix
from pipeline.inference.task_predictor import MIN_FILL, TaskPredictor, TokenUsage
from tests.support.tiny_trunks import KINDS, WORDS, write_model

CPU = torch.device("cpu")
CLOSE = 5e-6  # weights are float64, but transformers has softmax, norms and rotations in float32


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RelevanceModel]:
    """Builder of models of two tasks with 2 and 3 labels and random adapters, in float64."""
    root = tmp_path_factory.mktemp("kinds")
    folders: dict[str, Path] = {}

    def built(kind: str = "llama", method: Any = MTLLoRAConfig) -> RelevanceModel:
        maker, targets = KINDS[kind]
        if kind not in folders:
            folders[kind] = write_model(root / kind, maker())
        source = BackboneConfig(source=str(folders[kind]), dtype="float32")
        model = build_model(
            ModelConfig(source, method(target_modules=targets, rank=2), (2, 3)), load_backbone(source), seed=0
        )
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.trainable_state().values():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        return model.double().eval()

    return built


def ads_and_queries(seed: int = 0) -> list[np.ndarray]:
    """40 rows: a common prefix, then one of 6 ads of several lengths, then a query; some rows twice."""
    draw = np.random.default_rng(seed)
    ads = [draw.integers(2, len(WORDS), length) for length in (9, 9, 12, 17, 20, 25)]
    rows = [
        np.concatenate(
            [[2, 3, 4], ads[draw.integers(6)], [5], draw.integers(2, len(WORDS), draw.integers(1, 6))]
        )
        for _ in range(36)
    ]
    return [row.astype(np.int32) for row in (*rows, *rows[:4])]


def row_by_row(model: RelevanceModel, task: int, rows: list[np.ndarray]) -> np.ndarray:
    found = []
    with torch.no_grad():
        for row in rows:
            ids_1S = torch.from_numpy(row.astype(np.int64))[None]
            found.append(
                model(ids_1S, torch.ones_like(ids_1S), torch.tensor([task]))[
                    0, : model.heads.num_labels_T[task]
                ]
            )
    return torch.stack(found).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_each_row_alone(build: Any, kind: str) -> None:
    model, rows = build(kind), ads_and_queries()
    for task in (0, 1):
        expected = row_by_row(model, task, rows)
        for batch_tokens in (1, 40, 200, 100_000):
            predictor = TaskPredictor(model, task, 0, CPU)
            found = predictor.plan_logits(rows, batch_tokens).run()
            assert np.abs(found - expected).max() < CLOSE, batch_tokens
            if kind in ("llama", "opt") and batch_tokens < 100:
                assert predictor.usage.computed_share < 0.6, f"prefixes were not encoded once: {batch_tokens}"


def test_prefixes_and_equal_rows_are_computed_once(build: Any) -> None:
    rows = ads_and_queries()
    predictor = TaskPredictor(build(), 0, 0, CPU)
    predictor.plan_logits(rows[:2], 100).run()  # tries sharing prefixes
    predictor.usage = TokenUsage()
    predictor.plan_logits(rows, 1).run()  # a pass per row: no padding
    kept = {row.tobytes(): row for row in rows}
    prefixes = {tuple(row[:12].tolist()) for row in rows}
    most = 3 + sum(25 for _ in prefixes) + sum(6 for _ in kept)
    assert predictor.usage.tokens_in == sum(map(len, rows))
    assert predictor.usage.tokens_computed <= most < 0.5 * predictor.usage.tokens_in
    assert predictor.usage.model_s > 0


def test_leading_queries_are_computed_once(build: Any) -> None:
    draw = np.random.default_rng(5)
    queries = [draw.integers(2, len(WORDS), 10) for _ in range(5)]
    rows = [
        np.concatenate([queries[n % 5], draw.integers(2, len(WORDS), draw.integers(12, 30))]).astype(np.int32)
        for n in range(40)
    ]
    _, groups = group_by_prefix(rows)
    assert sorted(len(group.rows) for group in groups) == [8] * 5 and all(
        10 <= group.prefix_length <= 13 for group in groups
    )
    model = build()
    found = TaskPredictor(model, 0, 0, CPU).plan_logits(rows, 200).run()
    assert np.abs(found - row_by_row(model, 0, rows)).max() < CLOSE


def test_unmergeable_method_runs_with_its_adapter(build: Any) -> None:
    model, rows = build(method=HydraLoRAConfig), ads_and_queries()
    predictor = TaskPredictor(model, 1, 0, CPU)
    assert predictor.merged is None
    assert np.abs(predictor.plan_logits(rows, 200).run() - row_by_row(model, 1, rows)).max() < CLOSE


def test_model_that_ignores_prefixes_computes_whole_rows(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        task_predictor, "forward_with_prefix", lambda model, ids_BS, *_: torch.zeros(len(ids_BS), 3).double()
    )
    model, rows = build(), ads_and_queries()
    predictor = TaskPredictor(model, 1, 0, CPU)
    assert np.abs(predictor.plan_logits(rows, 200).run() - row_by_row(model, 1, rows)).max() < CLOSE
    assert predictor.shares_prefixes is False


def test_every_row_is_in_one_step(build: Any) -> None:
    rows = ads_and_queries()
    planned_rows: list[int] = []
    for step in TaskPredictor(build(), 0, 0, CPU).plan_logits(rows, 60):
        planned_rows.extend(step.rows.tolist())
        step.run()
    assert sorted(planned_rows) == list(range(len(rows)))


@pytest.mark.parametrize(
    "rows",
    [[[5]], [[5], [5]], [[5], [6, 7]], [[5, 6], [5, 6, 7]], [[5], [5, 6], [5, 6, 7]], [[5, 6, 7], [8]]],
    ids=str,
)
def test_single_tokens_and_rows_that_are_prefixes_are_computed(build: Any, rows: list[list[int]]) -> None:
    model, given = build(), [np.array(row, np.int32) for row in rows]
    found = TaskPredictor(model, 0, 0, CPU).plan_logits(given, 100).run()
    assert np.abs(found - row_by_row(model, 0, given)).max() < CLOSE


def test_no_rows_give_no_logits(build: Any) -> None:
    assert TaskPredictor(build(), 1, 0, CPU).plan_logits([], 100).run().shape == (0, 3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=300), st.integers(1, 3_000))
def test_batches_keep_to_budget_with_little_padding(lengths: list[int], budget: int) -> None:
    length_N = np.array(lengths)
    batches = length_batches(length_N, budget, MIN_FILL)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest, shortest = length_N[batch].max(), length_N[batch].min()
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert shortest >= MIN_LENGTH_RATIO * longest or (len(batch) - 1) * longest <= MIN_FILL * budget


IDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(IDS)
def test_groups_hold_each_row_once_behind_its_prefix(lists: list[list[int]]) -> None:
    rows, first_N = find_distinct([np.array(ids, np.int32) for ids in lists])
    assert [rows[u].tolist() for u in first_N] == lists
    common, groups = group_by_prefix(rows)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
    for group in groups:
        heads = {tuple(rows[row][: group.prefix_length].tolist()) for row in group.rows}
        assert len(heads) == 1 and common <= group.prefix_length < min(len(rows[row]) for row in group.rows)
    assert len({tuple(row[:common].tolist()) for row in rows}) == 1


def test_common_prefix_ends_at_difference_or_end() -> None:
    cases = [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 4], 2), ([1], [2], 0), ([], [2], 0)]
    for one, other, expected in cases:
        assert common_prefix_length(np.array(one, np.int32), np.array(other, np.int32)) == expected
