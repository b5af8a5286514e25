"""Packed rows with shared prefixes have the logits and gradients of padded rows.

Shape legend: B rows, T tasks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.packing import (
    GatherPrefixes,
    PackTokens,
    UnpackTokens,
    pack_rows,
    packed_attention_mask,
    short_attention,
)
from models.relevance import RelevanceModel, build_model
from models.training.compilation import compile_layers
from models.training.flat_parameters import FlatModel
from tests.support.tiny_trunks import WORDS, tiny_llama, write_model

FreshModel = Callable[..., RelevanceModel]
TASK_B = np.array([1, 0, 1, 2, 1, 0])
CLOSE = 5e-6  # weights are float64, but transformers computes softmax, norms and rotations in float32


def rows_of(length_T: list[int], tails: list[int], seed: int = 0) -> list[np.ndarray]:
    """Return a row for each of TASK_B: its task's prefix and `tails` further tokens."""
    draw = np.random.default_rng(seed)
    prefix_T = [draw.integers(2, len(WORDS), length) for length in length_T]
    rows = [
        np.concatenate([prefix_T[task], draw.integers(2, len(WORDS), tail)])
        for task, tail in zip(TASK_B, tails, strict=True)
    ]
    return [row.astype(np.int32) for row in rows]


def padded_logits(model: RelevanceModel, rows: list[np.ndarray]) -> torch.Tensor:
    length_B = torch.tensor([len(row) for row in rows])
    ids_BS = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(row.astype(np.int64)) for row in rows], batch_first=True
    )
    mask_BS = (torch.arange(ids_BS.shape[1]) < length_B[:, None]).long()
    return model(ids_BS, mask_BS, torch.from_numpy(TASK_B))  # type: ignore[no-any-return]


def packed_logits(model: RelevanceModel, rows: list[np.ndarray], length_T: list[int]) -> torch.Tensor:
    model.enable_packing()
    ids_1N, packed = pack_rows(rows, TASK_B, np.array(length_T))
    return model(ids_1N, torch.ones(len(rows), 1, dtype=torch.long), torch.from_numpy(TASK_B), packed)  # type: ignore[no-any-return]


def gradients(model: RelevanceModel, logits_BC: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits_BC, torch.tensor([1, 0, 2, 4, 0, 1])).backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_state().items()}


METHODS = {
    "mtl_lora": {"method": MTLLoRAConfig},
    "mtl_lora of all linears": {"method": MTLLoRAConfig, "target_modules": "all-linear"},
    "mtl_lora of diagonals": {"method": MTLLoRAConfig, "transform": "diagonal"},
    "lora": {"method": LoRAConfig},
    "per_task_lora": {"method": PerTaskLoRAConfig},
    "multi_lora of all linears": {"method": MultiLoRAConfig, "target_modules": "all-linear"},
    "moe_lora of all linears": {"method": MoELoRAConfig, "target_modules": "all-linear"},
    "hydra_lora": {"method": HydraLoRAConfig},
    "dora": {"method": DoRAConfig},
}
PREFIX_LENGTHS = [[4, 4, 4], [3, 9, 1], [0, 5, 0], [0, 0, 0], [2, 30, 17]]


def check_against_padded(model: RelevanceModel, length_T: list[int]) -> None:
    """Compare packed with padded rows in float64."""
    model = model.double().train()
    rows = rows_of(length_T, [6, 2, 7, 1, 3, 5])
    expected = padded_logits(model, rows)
    expected_gradients = gradients(model, expected)
    actual = packed_logits(model, rows, length_T)
    torch.testing.assert_close(actual, expected, rtol=CLOSE, atol=CLOSE)
    for name, gradient in gradients(model, actual).items():
        assert (gradient - expected_gradients[name]).norm() <= 20 * CLOSE * expected_gradients[name].norm(), (
            name
        )
        assert expected_gradients[name].norm() > 0, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "length_T", PREFIX_LENGTHS, ids=["equal", "unequal", "one task", "none", "longer than the tails"]
)
def test_packed_logits_and_gradients_equal_padded_ones(
    fresh_model: FreshModel, method: str, length_T: list[int]
) -> None:
    check_against_padded(fresh_model(stir=5, **METHODS[method]), length_T)


def test_packed_rows_equal_padded_ones_with_eager_attention(fresh_model: FreshModel) -> None:
    model = fresh_model(stir=5)
    model.trunk.set_attn_implementation("eager")
    check_against_padded(model, [3, 9, 1])


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_packed_rows_equal_padded_ones_with_gradient_checkpointing(
    fresh_model: FreshModel, targets: Any
) -> None:
    model = fresh_model(stir=5, target_modules=targets)
    model.enable_gradient_checkpointing()
    check_against_padded(model, [3, 9, 1])


def test_enabled_packing_does_not_change_padded_rows(fresh_model: FreshModel) -> None:
    model, rows = fresh_model(stir=5), rows_of([4, 11, 3], [6, 2, 7, 1, 3, 5])
    with torch.no_grad():
        before = padded_logits(model, rows)
        model.enable_packing()
        model.enable_packing()  # a second call has no effect
        assert torch.equal(padded_logits(model, rows), before)
        model.disable_packing()
        assert model.trunk.config._attn_implementation == "sdpa" and torch.equal(
            padded_logits(model, rows), before
        )


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_saved_config_does_not_mention_packing(fresh_model: FreshModel, tmp_path: Path, kind: str) -> None:
    model = fresh_model()
    model.trunk.set_attn_implementation(kind)
    model.enable_packing()
    model.trunk.config.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    model.disable_packing()
    assert model.trunk.config._attn_implementation == kind


def test_unsupported_attention_is_refused(fresh_model: FreshModel) -> None:
    model = fresh_model()
    model.trunk.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="LlamaModel has flash_attention_2 attention"):
        model.enable_packing()


@settings(deadline=None, max_examples=25)
@given(
    length_T=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    tails=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_any_row_and_prefix_lengths_can_be_packed(
    fresh_model: FreshModel, length_T: list[int], tails: list[int]
) -> None:
    model, rows = fresh_model(stir=5), rows_of(length_T, tails, seed=sum(tails))
    ids_1N, packed = pack_rows(rows, TASK_B, np.array(length_T))
    # no padding
    assert ids_1N.shape == packed.task_1N.shape == packed.position_1N.shape == (1, sum(tails) + sum(length_T))
    assert int(packed.position_1N.max()) < max(map(len, rows))  # positions stay within the longest row
    assert packed.token_BS.flatten()[packed.slot_M].tolist() == list(range(sum(tails)))
    assert packed.token_GP.flatten()[packed.slot_L].tolist() == list(range(sum(length_T)))
    with torch.no_grad():
        torch.testing.assert_close(
            packed_logits(model, rows, length_T), padded_logits(model, rows), rtol=1e-4, atol=1e-4
        )


def test_packed_row_does_not_depend_on_other_rows(fresh_model: FreshModel) -> None:
    model, rows = fresh_model(stir=5), rows_of([4, 11, 3], [6, 2, 7, 1, 3, 5])
    other = [*rows[:-1], np.append(rows[-1][:4], [9, 9, 9, 9, 9]).astype(np.int32)]
    with torch.no_grad():
        one, two = (packed_logits(model, some, [4, 11, 3]) for some in (rows, other))
    assert torch.equal(one[:-1], two[:-1]) and not torch.equal(one[-1], two[-1])


@pytest.mark.e2e
def test_layers_compile_once_for_all_batch_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms, compile_module = CompileCounterWithBackend("aot_eager"), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compile_module(module, backend=forms, **options)
    )
    monkeypatch.setattr(torch.fx.experimental._config, "use_duck_shape", True)
    monkeypatch.setattr(torch._dynamo.config, "specialize_float", False)
    torch._dynamo.reset()
    backbone = BackboneConfig(
        source=str(write_model(tmp_path / "llama", tiny_llama(tied=True, num_layers=3))), dtype="float32"
    )
    config = ModelConfig(
        backbone, MTLLoRAConfig(rank=4, target_modules=("q_proj", "v_proj")), num_labels_T=(2, 3, 5)
    )
    model = FlatModel(build_model(config, load_backbone(backbone), seed=0))
    model.model.enable_packing()
    compile_layers(model.model)
    # sizes that coincide: prefixes and up-projections, rows and rank; and a single prefix
    for tasks, tails in (([0, 1, 2, 1], [3, 1, 2, 5]), ([2, 0, 2, 0, 0], [2, 4, 6, 1, 1]), ([1, 1], [7, 2])):
        task_B, length_T = np.array(tasks), np.array([4, 6, 3])
        ids_1N, packed = pack_rows(
            [np.arange(2, 2 + length_T[task] + tail) for task, tail in zip(tasks, tails, strict=True)],
            task_B,
            length_T,
        )
        model(ids_1N, torch.ones(len(tasks), 1, dtype=torch.long), torch.from_numpy(task_B), packed)[
            :, :2
        ].sum().backward()
    assert forms.frame_count == 1


def test_compilation_adds_no_gradient_below_the_adapted_layers(
    fresh_model: FreshModel,
) -> None:
    requires_grad = []
    for layers in (None, [1]):
        model = fresh_model(layers_to_transform=layers)
        compile_layers(model)
        requires_grad.append(model.trunk.get_input_embeddings()(torch.tensor([2, 3])).requires_grad)
    assert requires_grad == [True, False]


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_short_attention_equals_scaled_dot_product_attention(scaling: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, length, 8, dtype=torch.float64, requires_grad=True)
        for heads, length in ((6, 5), (2, 7), (2, 7))
    )
    mask = torch.zeros(3, 1, 5, 7, dtype=torch.float64).masked_fill(
        torch.rand(3, 1, 5, 7) < 0.4, torch.finfo(torch.float64).min
    )
    actual = short_attention(query, key, value, mask, scaling).transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scaling, enable_gqa=True
    )
    torch.testing.assert_close(actual, expected)
    directions = torch.randn_like(expected)
    grads = [
        torch.autograd.grad((states * directions).sum(), (query, key, value)) for states in (actual, expected)
    ]
    torch.testing.assert_close(*grads)
    assert not torch.equal(
        short_attention(query, key, value, mask, scaling, dropout=0.5).transpose(1, 2), actual
    )


def test_long_rows_use_fused_attention(fresh_model: FreshModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = fresh_model(stir=6), rows_of([4, 6, 3], [3, 1, 2, 5, 2, 2])
    short = packed_logits(model, rows, [4, 6, 3])
    short_lengths = []
    monkeypatch.setattr(
        "models.packing.short_attention",
        lambda *states: short_lengths.append(states[1].shape[2]) or short_attention(*states),
    )
    monkeypatch.setattr("models.packing.MAX_SHORT_TOKENS", 6)
    long = packed_logits(model, rows, [4, 6, 3])
    assert short_lengths and set(short_lengths) == {6}, "prefixes are short enough, rows behind them are not"
    torch.testing.assert_close(long, short, atol=CLOSE, rtol=CLOSE)


def test_prefix_gradient_is_the_sum_over_its_rows() -> None:
    prefixes, prefix_B = (
        torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True),
        torch.tensor([2, 0, 2, 2]),
    )
    assert torch.equal(GatherPrefixes.apply(prefixes, prefix_B), prefixes[prefix_B])
    assert torch.autograd.gradcheck(lambda states: GatherPrefixes.apply(states, prefix_B), prefixes)


def test_packed_layout_has_rows_first_and_prefixes_behind() -> None:
    rows = [np.array(row, np.int32) for row in ([7, 8, 9, 1, 2], [7, 8, 9, 3], [5, 6])]
    ids_1N, packed = pack_rows(rows, np.array([2, 2, 0]), np.array([1, 0, 3]))
    assert ids_1N.tolist() == [[1, 2, 3, 6, 5, 7, 8, 9]]
    assert {name: tensor.tolist() for name, tensor in packed._asdict().items()} == {
        "task_1N": [[2, 2, 2, 0, 0, 2, 2, 2]],
        "position_1N": [[3, 4, 3, 1, 0, 0, 1, 2]],
        "token_BS": [[0, 1], [2, 2], [3, 3]],
        "slot_M": [0, 1, 2, 4],
        "token_GP": [[0, 0, 0], [1, 2, 3]],
        "slot_L": [0, 3, 4, 5],
        "prefix_B": [1, 1, 0],
        "prefix_length_B": [3, 3, 1],
        "last_B": [1, 2, 3],
    }


def test_single_prefix_is_duplicated() -> None:
    _, packed = pack_rows(
        [np.array(row, np.int32) for row in ([7, 8, 1, 2], [7, 8, 3])], np.array([1, 1]), np.array([0, 2])
    )
    assert (
        packed.token_GP.tolist() == [[0, 1], [0, 1]]
        and packed.slot_L.tolist() == [0, 1]
        and packed.prefix_B.tolist() == [0, 0]
    )


def test_token_attends_to_its_prefix_and_causally_to_its_row() -> None:
    rows = [np.array(row, np.int32) for row in ([7, 8, 9, 1, 2], [7, 8, 9, 3], [5, 6])]
    seen_BSK = (
        packed_attention_mask(pack_rows(rows, np.array([2, 2, 0]), np.array([1, 0, 3]))[1])[:, 0]
        .long()
        .tolist()
    )
    assert seen_BSK[0] == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert seen_BSK[2][0] == [1, 0, 0, 1, 0]  # a prefix of one token


def test_unpacking_and_packing_are_inverse_with_gradients() -> None:
    rows = [np.arange(2, 2 + length, dtype=np.int32) for length in (3, 1, 4)]
    _, packed = pack_rows(rows, np.array([0, 0, 0]), np.array([0]))
    states_NE = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    real_RS = torch.arange(4) < torch.tensor([3, 1, 4])[:, None]

    def unpack_and_pack(states_NE: torch.Tensor) -> torch.Tensor:
        in_rows = UnpackTokens.apply(states_NE, packed.token_BS, packed.slot_M)
        return PackTokens.apply(in_rows.sin() * real_RS[..., None], packed.token_BS, packed.slot_M)  # type: ignore[no-any-return]

    torch.testing.assert_close(unpack_and_pack(states_NE), states_NE.sin())
    assert torch.autograd.gradcheck(unpack_and_pack, states_NE)
    places_RSE = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: PackTokens.apply(x, packed.token_BS, packed.slot_M), places_RSE)
