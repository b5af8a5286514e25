"""What a task's rows begin with is found, and packed rows are tried on the model before they are trained
on.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models import packing
from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import build_model
from pipeline.encoding.batches import EncodedRows, collate
from pipeline.training.packing_probe import beginning_lengths, packed_beginnings, rows_to_try
from tests.support.tiny_trunks import KINDS, WORDS, write_model

LENGTHS = [4, 3]  # what the rows of two tasks begin with


def encoded(lists: list[list[int]], task_N: list[int]) -> EncodedRows:
    count, names = len(lists), pa.chunked_array([[""] * len(lists)])
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])])
    ids, label_N, weight_N = (
        np.concatenate(lists).astype(np.int32),
        np.zeros(count, np.int64),
        np.ones(count, np.float32),
    )
    return EncodedRows(ids, starts, np.array(task_N), label_N, weight_N, names, names)


def rows_of_two_tasks(longest_tail: int = 4) -> EncodedRows:
    """Two beginnings, and tails whose first tokens differ."""
    draw = np.random.default_rng(1)
    beginnings = [draw.integers(2, len(WORDS), length).tolist() for length in LENGTHS]
    task_N = [0, 0, 0, 0, 1, 1, 1]
    tails = [
        [2 + n, *draw.integers(2, len(WORDS), draw.integers(1, longest_tail)).tolist()]
        for n in range(len(task_N))
    ]
    return encoded([beginnings[task] + tail for task, tail in zip(task_N, tails, strict=True)], task_N)


@pytest.fixture(scope="module")
def judge_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """An untrained judge of two tasks on a tiny trunk of a kind."""

    def built(kind: str, dtype: Any = "float32") -> Any:
        maker, targets = KINDS[kind]
        source = BackboneConfig(
            source=str(write_model(tmp_path_factory.mktemp(kind) / "trunk", maker())), dtype=dtype
        )
        backbone = load_backbone(source)
        model = build_model(
            ModelConfig(source, MTLLoRAConfig(target_modules=targets), (2, 3)), backbone, seed=0
        )
        return SimpleNamespace(
            model=model, backbone=backbone, tasks=(None, None), pad_id=0, device=torch.device("cpu")
        )

    return built


def config(lora_dropout: float = 0.0) -> Any:
    return SimpleNamespace(adapter=SimpleNamespace(lora_dropout=lora_dropout))


@pytest.mark.parametrize(
    ("lists", "task_N", "lengths"),
    [
        ([[5, 6, 7], [5, 6, 8, 9]], [0, 0], [2, 0]),
        ([[5, 6, 7], [5, 6]], [0, 0], [1, 0]),  # a row keeps a token
        ([[5, 6, 7], [5, 6, 7]], [0, 0], [2, 0]),
        ([[5, 6], [7, 6], [5, 6]], [0, 1, 1], [0, 0]),  # one row alone shares nothing
        ([[5, 6, 7], [8, 8, 1], [5, 6, 4], [8, 8, 2]], [0, 1, 0, 1], [2, 2]),
    ],
)
def test_a_beginning_is_what_all_rows_of_a_task_have_in_common(
    lists: list[list[int]], task_N: list[int], lengths: list[int]
) -> None:
    assert beginning_lengths(encoded(lists, task_N), 2).tolist() == lengths


@pytest.mark.parametrize("kind", ["llama", "opt", "mistral"])
def test_a_decoder_that_gives_padded_rows_logits_takes_them_packed(
    judge_of: Callable[..., Any], kind: str
) -> None:
    judge = judge_of(kind)
    found = packed_beginnings(config(), judge, rows_of_two_tasks())
    assert found is not None and found.tolist() == LENGTHS
    assert not judge.model.training


@pytest.mark.parametrize("kind", ["bert", "bloom", "mpt", "lfm2"])
def test_a_trunk_that_does_not_takes_them_padded(judge_of: Callable[..., Any], kind: str) -> None:
    assert packed_beginnings(config(), judge_of(kind), rows_of_two_tasks()) is None


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("lfm2", False)])
def test_in_bfloat16_too_what_runs_over_the_end_of_a_row_is_found(
    judge_of: Callable[..., Any], kind: str, packs: bool
) -> None:
    rows = rows_of_two_tasks(longest_tail=40)
    assert (packed_beginnings(config(), judge_of(kind, "bfloat16"), rows) is not None) == packs


def test_rows_longer_than_a_layer_looks_back_are_padded(judge_of: Callable[..., Any]) -> None:
    assert packed_beginnings(config(), judge_of("mistral"), rows_of_two_tasks(longest_tail=30)) is None


def test_with_dropout_rows_are_padded(judge_of: Callable[..., Any]) -> None:
    judge, rows = judge_of("llama"), rows_of_two_tasks()
    assert packed_beginnings(config(lora_dropout=0.1), judge, rows) is None
    for layer in judge.model.trunk.layers:
        layer.self_attn.attention_dropout = 0.3  # the trunk's own
    assert packed_beginnings(config(), judge, rows) is None


def test_on_a_gpu_rows_are_padded(judge_of: Callable[..., Any]) -> None:
    judge = judge_of("llama")
    assert packed_beginnings(config(), judge, rows_of_two_tasks()) is not None
    judge.device = torch.device("cuda")
    assert packed_beginnings(config(), judge, rows_of_two_tasks()) is None


@pytest.mark.parametrize("part", ["attended", "behind_beginning"])
def test_a_model_that_answers_otherwise_gets_rows_padded(
    judge_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    right = getattr(packing, part)
    wrong = {
        "attended": lambda rows: torch.ones_like(right(rows)),
        "behind_beginning": lambda own, begun, beginning_B: right(own, 1.5 * begun, beginning_B),
    }[part]
    judge, rows = judge_of("llama"), rows_of_two_tasks(longest_tail=40)
    kind, padded = judge.model.trunk.config._attn_implementation, collate(rows, np.arange(7), 2, 0)
    with torch.no_grad():
        before = judge.model(*padded.inputs)
    assert packed_beginnings(config(), judge, rows) is not None
    monkeypatch.setattr(packing, part, wrong)
    assert packed_beginnings(config(), judge, rows) is None
    assert judge.model.trunk.config._attn_implementation == kind
    with torch.no_grad():
        assert torch.equal(judge.model(*padded.inputs), before)


def test_what_tasks_begin_with_is_tried_also_where_the_first_tasks_have_nothing() -> None:
    rows = encoded([[5], [6, 7], [8], [9, 2], [4, 4, 2], [4, 4, 3], [4, 4, 5, 6]], [0, 0, 1, 1, 2, 2, 2])
    assert rows_to_try(rows, np.array([0, 0, 2])).tolist() == [6, 4, 1, 0]
    assert rows_to_try(encoded([[5, 6]], [1]), np.array([0, 0])).tolist() == [0, 0]


def test_rows_without_a_common_beginning_are_packed_whole(judge_of: Callable[..., Any]) -> None:
    found = packed_beginnings(config(), judge_of("llama"), encoded([[5, 6], [7, 6], [8, 6, 4]], [0, 0, 0]))
    assert found is not None and found.tolist() == [0, 0]


def test_a_packed_batch_has_beginnings_once_and_no_padding() -> None:
    rows = rows_of_two_tasks()
    packed = collate(rows, np.arange(7), 2, 0, np.array(LENGTHS))
    padded = collate(rows, np.arange(7), 2, 0)
    assert packed.packed is not None and padded.packed is None
    assert (
        packed.num_padding == 0
        and packed.input_ids_BS.numel() == rows.length_N.sum() - 3 * LENGTHS[0] - 2 * LENGTHS[1]
    )
    assert padded.input_ids_BS.numel() - padded.num_padding == rows.length_N.sum()


def test_a_packed_batch_moves_to_a_device_whole() -> None:
    moved = collate(rows_of_two_tasks(), np.arange(7), 2, 0, np.array(LENGTHS)).to(torch.device("meta"))
    assert moved.packed is not None and all(tensor.is_meta for tensor in moved.packed)
