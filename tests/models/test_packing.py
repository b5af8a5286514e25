"""Rows laid end to end, with what they begin with once: logits and gradients stay those of padded rows.

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
from models.packing import FromRows, OfBeginnings, ToRows, attend_in_products, attended, pack
from models.relevance import RelevanceModel, build_model
from models.training.compilation import compile_layers
from models.training.flat_parameters import FlatModel
from tests.support.tiny_trunks import WORDS, tiny_llama, write_model

FreshModel = Callable[..., RelevanceModel]
TASK_B = np.array([1, 0, 1, 2, 1, 0])
CLOSE = 5e-6  # weights are float64, but transformers has softmax, norms and rotations in float32


def rows_of(length_T: list[int], tails: list[int], seed: int = 0) -> list[np.ndarray]:
    """A row of each of TASK_B: its task's beginning, and that many tokens more."""
    draw = np.random.default_rng(seed)
    beginning_T = [draw.integers(2, len(WORDS), length) for length in length_T]
    rows = [
        np.concatenate([beginning_T[task], draw.integers(2, len(WORDS), tail)])
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
    model.take_packed()
    ids_1N, packed = pack(rows, TASK_B, np.array(length_T))
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
ALIKE = [[4, 4, 4], [3, 9, 1], [0, 5, 0], [0, 0, 0], [2, 30, 17]]


def check_against_padded(model: RelevanceModel, length_T: list[int]) -> None:
    """In float64."""
    model = model.double().train()
    rows = rows_of(length_T, [6, 2, 7, 1, 3, 5])
    expected = padded_logits(model, rows)
    expected_gradients = gradients(model, expected)
    found = packed_logits(model, rows, length_T)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    for name, gradient in gradients(model, found).items():
        assert (gradient - expected_gradients[name]).norm() <= 20 * CLOSE * expected_gradients[name].norm(), (
            name
        )
        assert expected_gradients[name].norm() > 0, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "length_T", ALIKE, ids=["as long", "unlike", "one alone", "none", "longer than what follows"]
)
def test_logits_and_gradients_are_those_of_padded_rows(
    fresh_model: FreshModel, method: str, length_T: list[int]
) -> None:
    check_against_padded(fresh_model(stir=5, **METHODS[method]), length_T)


def test_so_they_are_with_attention_written_out(fresh_model: FreshModel) -> None:
    model = fresh_model(stir=5)
    model.trunk.set_attn_implementation("eager")
    check_against_padded(model, [3, 9, 1])


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_so_they_are_where_states_are_recomputed(fresh_model: FreshModel, targets: Any) -> None:
    model = fresh_model(stir=5, target_modules=targets)
    model.enable_gradient_checkpointing()
    check_against_padded(model, [3, 9, 1])


def test_padded_rows_get_what_they_got_before(fresh_model: FreshModel) -> None:
    model, rows = fresh_model(stir=5), rows_of([4, 11, 3], [6, 2, 7, 1, 3, 5])
    with torch.no_grad():
        before = padded_logits(model, rows)
        model.take_packed()
        model.take_packed()  # twice is once
        assert torch.equal(padded_logits(model, rows), before)
        model.take_padded_only()
        assert model.trunk.config._attn_implementation == "sdpa" and torch.equal(
            padded_logits(model, rows), before
        )


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_configs_that_are_written_know_nothing_of_it(
    fresh_model: FreshModel, tmp_path: Path, kind: str
) -> None:
    model = fresh_model()
    model.trunk.set_attn_implementation(kind)
    model.take_packed()
    model.trunk.config.save_pretrained(tmp_path)
    assert "row by row" not in (tmp_path / "config.json").read_text()
    model.take_padded_only()
    assert model.trunk.config._attn_implementation == kind


def test_attention_that_is_no_function_of_keys_is_told(fresh_model: FreshModel) -> None:
    model = fresh_model()
    model.trunk.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="LlamaModel has flash_attention_2 attention"):
        model.take_packed()


@settings(deadline=None, max_examples=25)
@given(
    length_T=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    tails=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_any_lengths_will_do(fresh_model: FreshModel, length_T: list[int], tails: list[int]) -> None:
    model, rows = fresh_model(stir=5), rows_of(length_T, tails, seed=sum(tails))
    ids_1N, packed = pack(rows, TASK_B, np.array(length_T))
    # no padding
    assert ids_1N.shape == packed.task_1N.shape == packed.position_1N.shape == (1, sum(tails) + sum(length_T))
    assert int(packed.position_1N.max()) < max(map(len, rows))  # no position that a model may not have
    assert packed.token_BS.flatten()[packed.place_M].tolist() == list(range(sum(tails)))
    assert packed.token_GP.flatten()[packed.place_L].tolist() == list(range(sum(length_T)))
    with torch.no_grad():
        torch.testing.assert_close(
            packed_logits(model, rows, length_T), padded_logits(model, rows), rtol=1e-4, atol=1e-4
        )


def test_a_row_s_logits_do_not_depend_on_the_rows_beside_it(fresh_model: FreshModel) -> None:
    model, rows = fresh_model(stir=5), rows_of([4, 11, 3], [6, 2, 7, 1, 3, 5])
    other = [*rows[:-1], np.append(rows[-1][:4], [9, 9, 9, 9, 9]).astype(np.int32)]
    with torch.no_grad():
        one, two = (packed_logits(model, some, [4, 11, 3]) for some in (rows, other))
    assert torch.equal(one[:-1], two[:-1]) and not torch.equal(one[-1], two[-1])


@pytest.mark.e2e
def test_layers_are_compiled_once_for_batches_of_any_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    model.model.take_packed()
    compile_layers(model.model)
    # as many beginnings as up-projections, as many rows as a rank, a single beginning
    for tasks, tails in (([0, 1, 2, 1], [3, 1, 2, 5]), ([2, 0, 2, 0, 0], [2, 4, 6, 1, 1]), ([1, 1], [7, 2])):
        task_B, length_T = np.array(tasks), np.array([4, 6, 3])
        ids_1N, packed = pack(
            [np.arange(2, 2 + length_T[task] + tail) for task, tail in zip(tasks, tails, strict=True)],
            task_B,
            length_T,
        )
        model(ids_1N, torch.ones(len(tasks), 1, dtype=torch.long), torch.from_numpy(task_B), packed)[
            :, :2
        ].sum().backward()
    assert forms.frame_count == 1


def test_no_gradient_goes_below_the_layers_that_are_adapted_where_they_are_compiled(
    fresh_model: FreshModel,
) -> None:
    asked = []
    for layers in (None, [1]):
        model = fresh_model(layers_to_transform=layers)
        compile_layers(model)
        asked.append(model.trunk.get_input_embeddings()(torch.tensor([2, 3])).requires_grad)
    assert asked == [True, False]


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_in_products_is_torch_s_own(scaling: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, length, 8, dtype=torch.float64, requires_grad=True)
        for heads, length in ((6, 5), (2, 7), (2, 7))
    )
    mask = torch.zeros(3, 1, 5, 7, dtype=torch.float64).masked_fill(
        torch.rand(3, 1, 5, 7) < 0.4, torch.finfo(torch.float64).min
    )
    mine = attend_in_products(query, key, value, mask, scaling).transpose(1, 2)
    usual = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scaling, enable_gqa=True
    )
    torch.testing.assert_close(mine, usual)
    directions = torch.randn_like(usual)
    grads = [
        torch.autograd.grad((states * directions).sum(), (query, key, value)) for states in (mine, usual)
    ]
    torch.testing.assert_close(*grads)
    assert not torch.equal(
        attend_in_products(query, key, value, mask, scaling, dropout=0.5).transpose(1, 2), mine
    )


def test_rows_that_are_long_keep_fused_attention(
    fresh_model: FreshModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = fresh_model(stir=6), rows_of([4, 6, 3], [3, 1, 2, 5, 2, 2])
    short = packed_logits(model, rows, [4, 6, 3])
    written_out = []
    monkeypatch.setattr(
        "models.packing.attend_in_products",
        lambda *states: written_out.append(states[1].shape[2]) or attend_in_products(*states),
    )
    monkeypatch.setattr("models.packing.SHORT", 6)
    long = packed_logits(model, rows, [4, 6, 3])
    assert written_out and set(written_out) == {6}, "beginnings are short enough, rows behind them are not"
    torch.testing.assert_close(long, short, atol=CLOSE, rtol=CLOSE)


def test_what_rows_begin_with_gets_the_sum_of_their_gradients() -> None:
    begun, beginning_B = (
        torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True),
        torch.tensor([2, 0, 2, 2]),
    )
    assert torch.equal(OfBeginnings.apply(begun, beginning_B), begun[beginning_B])
    assert torch.autograd.gradcheck(lambda states: OfBeginnings.apply(states, beginning_B), begun)


def test_rows_keep_what_follows_and_beginnings_lie_behind_them() -> None:
    rows = [np.array(row, np.int32) for row in ([7, 8, 9, 1, 2], [7, 8, 9, 3], [5, 6])]
    ids_1N, packed = pack(rows, np.array([2, 2, 0]), np.array([1, 0, 3]))
    assert ids_1N.tolist() == [[1, 2, 3, 6, 5, 7, 8, 9]]
    assert {name: tensor.tolist() for name, tensor in packed._asdict().items()} == {
        "task_1N": [[2, 2, 2, 0, 0, 2, 2, 2]],
        "position_1N": [[3, 4, 3, 1, 0, 0, 1, 2]],
        "token_BS": [[0, 1], [2, 2], [3, 3]],
        "place_M": [0, 1, 2, 4],
        "token_GP": [[0, 0, 0], [1, 2, 3]],
        "place_L": [0, 3, 4, 5],
        "beginning_B": [1, 1, 0],
        "num_before_B": [3, 3, 1],
        "last_B": [1, 2, 3],
    }


def test_a_single_beginning_lies_there_twice() -> None:
    _, packed = pack(
        [np.array(row, np.int32) for row in ([7, 8, 1, 2], [7, 8, 3])], np.array([1, 1]), np.array([0, 2])
    )
    assert (
        packed.token_GP.tolist() == [[0, 1], [0, 1]]
        and packed.place_L.tolist() == [0, 1]
        and packed.beginning_B.tolist() == [0, 0]
    )


def test_a_token_attends_to_its_own_beginning_and_to_its_row_up_to_itself() -> None:
    rows = [np.array(row, np.int32) for row in ([7, 8, 9, 1, 2], [7, 8, 9, 3], [5, 6])]
    seen_BSK = attended(pack(rows, np.array([2, 2, 0]), np.array([1, 0, 3]))[1])[:, 0].long().tolist()
    assert seen_BSK[0] == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert seen_BSK[2][0] == [1, 0, 0, 1, 0]  # a beginning of one token


def test_states_go_to_rows_and_back_with_their_gradients() -> None:
    rows = [np.arange(2, 2 + length, dtype=np.int32) for length in (3, 1, 4)]
    _, packed = pack(rows, np.array([0, 0, 0]), np.array([0]))
    states_NE = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    real_RS = torch.arange(4) < torch.tensor([3, 1, 4])[:, None]

    def there_and_back(states_NE: torch.Tensor) -> torch.Tensor:
        in_rows = ToRows.apply(states_NE, packed.token_BS, packed.place_M)
        return FromRows.apply(in_rows.sin() * real_RS[..., None], packed.token_BS, packed.place_M)  # type: ignore[no-any-return]

    torch.testing.assert_close(there_and_back(states_NE), states_NE.sin())
    assert torch.autograd.gradcheck(there_and_back, states_NE)
    places_RSE = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: FromRows.apply(x, packed.token_BS, packed.place_M), places_RSE)
