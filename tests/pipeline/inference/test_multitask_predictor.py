"""Every row labelled for every task: in one pass where the model shares layers enough, else task by task, and
always as plain scoring would.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from models.inference.task_branching import all_task_logits
from pipeline.inference import multitask_predictor as all_tasks
from pipeline.inference.multitask_predictor import ONE_PASS_SHARE, AllTasksJudge
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
        "last layer knows tasks",
        "no layer does",
        "every layer does",
        "half of them do",
        "unlike templates",
    ],
)
def test_a_row_gets_a_label_of_every_task(build: BuildWorld, blocks: dict[str, Any], one_pass: bool) -> None:
    world = build(**blocks)
    scorer, record = score_all(world)
    assert scorer.all_tasks is not None and scorer.all_tasks.one_pass is one_pass
    assert (scorer.judge.task_judges == {}) is one_pass, (
        "no task's adapters are merged where one pass is taken"
    )
    check_as_plain(world, read_published(world.scores_dir))
    assert record["spent"]["tokens_computed"] > 0 and record["spent"]["model_s"] > 0


def test_one_pass_reads_each_row_once_and_branches_at_the_layer_that_knows_tasks(build: BuildWorld) -> None:
    scorer = build(**SHARED).scorer()
    passed: dict[str, list[int]] = {"embed_tokens": [], "layers.2": [], "layers.3.mlp": []}
    for name, sizes in passed.items():
        module = scorer.judge.model.trunk.get_submodule(name)
        module.register_forward_hook(
            lambda _, __, output, sizes=sizes: sizes.append(output.shape[0] * output.shape[1])
        )
    # equal texts twice
    rows = [
        row | {"row_id": f"{row['row_id']}-{copy}"} for row in planted_rows("two", 30, 3) for copy in range(2)
    ]
    table = pa.Table.from_pylist(rows, ROW_SCHEMA)
    judge = AllTasksJudge(scorer.judge)
    judge.logits(judge.encode(table.slice(0, 4)), 128, lambda rows: None)  # tries two rows out
    before = judge.spent()
    for sizes in passed.values():
        sizes.clear()
    told: list[int] = []
    judge.logits(judge.encode(table), 128, lambda rows: told.extend(rows.tolist()))
    assert sorted(told) == list(range(60)), "each row is told once"
    embedded = passed["embed_tokens"]
    tokens = sum(len(scorer.judge.encoder.encode(table.slice(row, 1), "two")[0]) for row in range(60))
    assert len(embedded) > 1 and tokens / 2 <= sum(embedded) < 0.7 * tokens, "equal rows go through once"
    assert passed["layers.2"] == embedded and passed["layers.3.mlp"] == [2 * size for size in embedded]
    assert max(passed["layers.3.mlp"]) <= 128, "the budget holds where a pass is widest"
    spent = judge.spent()
    assert spent.tokens_in - before.tokens_in == 2 * tokens
    assert spent.tokens_computed - before.tokens_computed == pytest.approx(
        sum(embedded) * 5 / 4, abs=len(embedded)
    )


def test_the_layers_that_are_shared_decide(build: BuildWorld) -> None:
    assert AllTasksJudge(build(**SHARED).scorer().judge).cost_share == 5 / 8 <= ONE_PASS_SHARE
    assert AllTasksJudge(build(**EVERY_LAYER).scorer().judge).cost_share == 1


def other_answer(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
    return {task: model(ids_BS, mask_BS, torch.full((len(ids_BS),), task)) + 1.0 for task in range(2)}


def no_answer(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
    raise ValueError("whose rows cannot be told")


def fails_later(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, real: Any = all_task_logits) -> Any:
    """Not on the two rows tried."""
    return real(model, ids_BS, mask_BS) if len(ids_BS) == 2 else no_answer(model, ids_BS, mask_BS)


@pytest.mark.parametrize("instead", [other_answer, no_answer, fails_later])
def test_a_trunk_that_cannot_branch_is_found_out_and_judged_task_by_task(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, instead: Callable[..., Any]
) -> None:
    world = build(**SHARED)
    monkeypatch.setattr(all_tasks, "all_task_logits", instead)
    scorer, _ = score_all(world)
    assert scorer.all_tasks is not None and scorer.all_tasks.one_pass is False
    check_as_plain(world, read_published(world.scores_dir))


def test_a_bfloat16_model_agrees_with_itself_and_takes_one_pass(build: BuildWorld, deep_llama: Path) -> None:
    scorer, _ = score_all(build(**SHARED, backbone={"source": str(deep_llama), "dtype": "bfloat16"}))
    assert scorer.all_tasks is not None and scorer.all_tasks.one_pass is True
