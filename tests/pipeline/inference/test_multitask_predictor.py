"""Every row labeled for every task, in one pass or task by task, as single-task scoring would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from models.inference.task_branching import all_task_logits
from pipeline.inference import multitask_predictor
from pipeline.inference.multitask_predictor import ONE_PASS_SHARE, MultitaskPredictor
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import read_published
from tests.support.all_tasks_scoring import EVERY_LAYER, MTL, SHARED, BuildWorld, check_as_plain, score_all
from tests.support.planted import planted_config, planted_rows

ONE_FOR_ALL = {"adapter": {"method": "lora", "target_modules": ["q_proj", "v_proj"], "rank": 4}}
OTHER_TEMPLATE = "Ask: {query}\nItem: {ad_title} {ad_description}"


def templates(second: str) -> dict[str, Any]:
    """The planted tasks, the second with this template."""
    two, three = planted_config(Path("/"), "")["tasks"]
    return {"tasks": [two, {**three, "template": second}]}


@pytest.mark.parametrize(
    ("blocks", "one_pass"),
    [
        (SHARED, True),
        (ONE_FOR_ALL, True),
        (EVERY_LAYER, False),
        ({"adapter": {**MTL, "task_layers": 2}}, False),
        ({**SHARED, **templates(OTHER_TEMPLATE)}, False),
    ],
    ids=[
        "one task layer",
        "no task layer",
        "all task layers",
        "half task layers",
        "different templates",
    ],
)
def test_every_row_gets_a_label_of_every_task(
    build: BuildWorld, blocks: dict[str, Any], one_pass: bool
) -> None:
    world = build(**blocks)
    scorer, record = score_all(world)
    assert scorer.multitask is not None and scorer.multitask.one_pass is one_pass
    assert (scorer.predictor.task_predictors == {}) is one_pass, "one pass merges no task's adapters"
    check_as_plain(world, read_published(world.scores_dir))
    assert record["spent"]["tokens_computed"] > 0 and record["spent"]["model_s"] > 0


def test_one_pass_runs_shared_layers_once_per_row(build: BuildWorld) -> None:
    scorer = build(**SHARED).scorer()
    passed: dict[str, list[int]] = {"embed_tokens": [], "layers.2": [], "layers.3.mlp": []}
    for name, sizes in passed.items():
        module = scorer.predictor.model.trunk.get_submodule(name)
        module.register_forward_hook(
            lambda _, __, output, sizes=sizes: sizes.append(output.shape[0] * output.shape[1])
        )
    # equal texts twice
    rows = [
        row | {"row_id": f"{row['row_id']}-{copy}"} for row in planted_rows("two", 30, 3) for copy in range(2)
    ]
    table = pa.Table.from_pylist(rows, ROW_SCHEMA)
    multitask = MultitaskPredictor(scorer.predictor)
    multitask.plan_logits(multitask.encode(table.slice(0, 4)), 128).run()  # tries two rows
    before = multitask.usage()
    for sizes in passed.values():
        sizes.clear()
    planned_rows: list[int] = []
    for step in multitask.plan_logits(multitask.encode(table), 128):
        planned_rows.extend(step.rows.tolist())
        step.run()
    assert sorted(planned_rows) == list(range(60)), "each row is in one step"
    embedded = passed["embed_tokens"]
    tokens = sum(len(scorer.predictor.encoder.encode(table.slice(row, 1), "two")[0]) for row in range(60))
    assert len(embedded) > 1 and tokens / 2 <= sum(embedded) < 0.7 * tokens, "equal rows are computed once"
    assert passed["layers.2"] == embedded and passed["layers.3.mlp"] == [2 * size for size in embedded]
    assert max(passed["layers.3.mlp"]) <= 128, "the budget holds in the upper layers"
    usage = multitask.usage()
    assert usage.tokens_in - before.tokens_in == 2 * tokens
    assert usage.tokens_computed - before.tokens_computed == pytest.approx(
        sum(embedded) * 5 / 4, abs=len(embedded)
    )


def test_cost_share_decides_for_one_pass(build: BuildWorld) -> None:
    assert MultitaskPredictor(build(**SHARED).scorer().predictor).cost_share == 5 / 8 <= ONE_PASS_SHARE
    assert MultitaskPredictor(build(**EVERY_LAYER).scorer().predictor).cost_share == 1


def wrong_logits(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
    return {task: model(ids_BS, mask_BS, torch.full((len(ids_BS),), task)) + 1.0 for task in range(2)}


def unsupported(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
    raise ValueError("rows cannot be told apart")


def fails_later(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, real: Any = all_task_logits) -> Any:
    """Fail on every batch but that of the two rows tried."""
    return real(model, ids_BS, mask_BS) if len(ids_BS) == 2 else unsupported(model, ids_BS, mask_BS)


@pytest.mark.parametrize("instead", [wrong_logits, unsupported, fails_later])
def test_unsupported_trunk_falls_back_to_a_pass_per_task(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, instead: Callable[..., Any]
) -> None:
    world = build(**SHARED)
    monkeypatch.setattr(multitask_predictor, "all_task_logits", instead)
    scorer, _ = score_all(world)
    assert scorer.multitask is not None and scorer.multitask.one_pass is False
    check_as_plain(world, read_published(world.scores_dir))


def test_bfloat16_model_takes_one_pass(build: BuildWorld, deep_llama: Path) -> None:
    scorer, _ = score_all(build(**SHARED, backbone={"source": str(deep_llama), "dtype": "bfloat16"}))
    assert scorer.multitask is not None and scorer.multitask.one_pass is True
