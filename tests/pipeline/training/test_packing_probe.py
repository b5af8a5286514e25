"""Tests of the packing probe: shared prefixes, and models that can or cannot take packed rows."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models import packing
from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import build_model
from pipeline.encoding.batches import EncodedRows, collate
from pipeline.training.packing_probe import probe_packing, probe_rows, shared_prefix_lengths
from tests.support.encoded_lists import encoded_lists
from tests.support.tiny_trunks import KINDS, WORDS, write_model

LENGTHS = [4, 3]  # shared prefixes of two tasks


def rows_of_two_tasks(longest_tail: int = 4) -> EncodedRows:
    """Return rows of two shared prefixes, and tails whose first tokens differ."""
    draw = np.random.default_rng(1)
    prefixes = [draw.integers(2, len(WORDS), length).tolist() for length in LENGTHS]
    task_N = [0, 0, 0, 0, 1, 1, 1]
    tails = [
        [2 + n, *draw.integers(2, len(WORDS), draw.integers(1, longest_tail)).tolist()]
        for n in range(len(task_N))
    ]
    return encoded_lists([prefixes[task] + tail for task, tail in zip(task_N, tails, strict=True)], task_N)


@pytest.fixture(scope="module")
def build_probed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that builds an untrained predictor of two tasks on a tiny trunk of a kind."""

    def build(kind: str, dtype: Any = "float32") -> Any:
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

    return build


def adapter(lora_dropout: float = 0.0) -> Any:
    return SimpleNamespace(lora_dropout=lora_dropout)


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
def test_shared_prefix_is_common_to_all_rows_of_a_task(
    lists: list[list[int]], task_N: list[int], lengths: list[int]
) -> None:
    assert shared_prefix_lengths(encoded_lists(lists, task_N), 2).tolist() == lengths


@pytest.mark.parametrize("kind", ["llama", "opt", "mistral"])
def test_decoder_with_equal_logits_takes_packed_rows(build_probed: Callable[..., Any], kind: str) -> None:
    predictor = build_probed(kind)
    found = probe_packing(predictor, rows_of_two_tasks(), adapter())
    assert found is not None and found.tolist() == LENGTHS
    assert not predictor.model.training


@pytest.mark.parametrize("kind", ["bert", "bloom", "mpt", "lfm2"])
def test_other_trunks_take_padded_rows(build_probed: Callable[..., Any], kind: str) -> None:
    assert probe_packing(build_probed(kind), rows_of_two_tasks(), adapter()) is None


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("lfm2", False)])
def test_leak_between_rows_is_found_in_bfloat16_too(
    build_probed: Callable[..., Any], kind: str, packs: bool
) -> None:
    rows = rows_of_two_tasks(longest_tail=40)
    assert (probe_packing(build_probed(kind, "bfloat16"), rows, adapter()) is not None) == packs


def test_rows_longer_than_the_attention_window_are_padded(build_probed: Callable[..., Any]) -> None:
    assert probe_packing(build_probed("mistral"), rows_of_two_tasks(longest_tail=30), adapter()) is None


def test_rows_are_padded_with_dropout(build_probed: Callable[..., Any]) -> None:
    predictor, rows = build_probed("llama"), rows_of_two_tasks()
    assert probe_packing(predictor, rows, adapter(lora_dropout=0.1)) is None
    for layer in predictor.model.trunk.layers:
        layer.self_attn.attention_dropout = 0.3  # the trunk's own
    assert probe_packing(predictor, rows, adapter()) is None


def test_rows_are_padded_on_a_gpu(build_probed: Callable[..., Any]) -> None:
    predictor = build_probed("llama")
    assert probe_packing(predictor, rows_of_two_tasks(), adapter()) is not None
    predictor.device = torch.device("cuda")
    assert probe_packing(predictor, rows_of_two_tasks(), adapter()) is None


@pytest.mark.parametrize("part", ["packed_attention_mask", "prepend_prefix"])
def test_model_with_other_logits_gets_padded_rows(
    build_probed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    correct = getattr(packing, part)
    wrong = {
        "packed_attention_mask": lambda rows: torch.ones_like(correct(rows)),
        "prepend_prefix": lambda own, begun, prefix_B: correct(own, 1.5 * begun, prefix_B),
    }[part]
    predictor, rows = build_probed("llama"), rows_of_two_tasks(longest_tail=40)
    kind, padded = predictor.model.trunk.config._attn_implementation, collate(rows, np.arange(7), 2, 0)
    with torch.no_grad():
        before = predictor.model(*padded.inputs)
    assert probe_packing(predictor, rows, adapter()) is not None
    monkeypatch.setattr(packing, part, wrong)
    assert probe_packing(predictor, rows, adapter()) is None
    assert predictor.model.trunk.config._attn_implementation == kind
    with torch.no_grad():
        assert torch.equal(predictor.model(*padded.inputs), before)


def test_probe_prefers_tasks_with_a_shared_prefix() -> None:
    rows = encoded_lists(
        [[5], [6, 7], [8], [9, 2], [4, 4, 2], [4, 4, 3], [4, 4, 5, 6]], [0, 0, 1, 1, 2, 2, 2]
    )
    assert probe_rows(rows, np.array([0, 0, 2])).tolist() == [6, 4, 1, 0]
    assert probe_rows(encoded_lists([[5, 6]], [1]), np.array([0, 0])).tolist() == [0, 0]


def test_rows_without_a_shared_prefix_are_packed_whole(build_probed: Callable[..., Any]) -> None:
    found = probe_packing(
        build_probed("llama"), encoded_lists([[5, 6], [7, 6], [8, 6, 4]], [0, 0, 0]), adapter()
    )
    assert found is not None and found.tolist() == [0, 0]


def test_packed_batch_has_prefixes_once_and_no_padding() -> None:
    rows = rows_of_two_tasks()
    packed = collate(rows, np.arange(7), 2, 0, np.array(LENGTHS))
    padded = collate(rows, np.arange(7), 2, 0)
    assert packed.packed is not None and padded.packed is None
    assert (
        packed.num_padding == 0
        and packed.input_ids_BS.numel() == rows.length_N.sum() - 3 * LENGTHS[0] - 2 * LENGTHS[1]
    )
    assert padded.input_ids_BS.numel() - padded.num_padding == rows.length_N.sum()


def test_packed_batch_moves_to_a_device_whole() -> None:
    moved = collate(rows_of_two_tasks(), np.arange(7), 2, 0, np.array(LENGTHS)).to(torch.device("meta"))
    assert moved.packed is not None and all(tensor.is_meta for tensor in moved.packed)
