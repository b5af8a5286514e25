"""Int8 in the place of a merged model's large matrices: as close as rounding allows, each row by itself, the model it came from untouched.

Shape legend: N rows, D width in, O width out.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models import quantize as quantize_module
from models.merge import merge_task
from models.quantize import CHUNK_ROWS, STEPS, Int8Linear, quantize
from models.relevance import RelevanceModel

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def linear_of(width_in: int, width_out: int, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    linear = nn.Linear(width_in, width_out, bias=bias).to(dtype)
    with torch.no_grad():
        linear.weight[0] *= 100  # a channel of another size than the others
        linear.weight[1] = 0
    return linear.requires_grad_(False)


def rows_of(num_rows: int, width: int) -> torch.Tensor:
    x_ND = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(2))
    x_ND[0] *= 1_000
    x_ND[2:3] = 0
    return x_ND


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 3, CHUNK_ROWS + 1])
def test_an_answer_is_off_by_half_a_step_of_each_weight_and_each_number_that_comes_in_at_most(num_rows: int, bias: bool, dtype: torch.dtype) -> None:
    linear, x_ND = linear_of(96, 40, bias, dtype), rows_of(num_rows, 96).to(dtype)
    found_NO = Int8Linear(linear)(x_ND)
    weight_OD, exact_ND = linear.weight.double(), x_ND.double()
    expected_NO = exact_ND @ weight_OD.T + (linear.bias.double() if bias else 0)
    half_O1, half_N1 = (numbers.abs().amax(dim=1, keepdim=True) / STEPS / 2 for numbers in (weight_OD, exact_ND))
    most_NO = exact_ND.abs().sum(1, keepdim=True) * half_O1.T + half_N1 * (weight_OD.abs().sum(1) + 96 * half_O1[:, 0])
    rounding = torch.finfo(dtype).eps  # of the answer itself
    assert ((found_NO.double() - expected_NO).abs() <= most_NO * (1 + 1e-4) + rounding * expected_NO.abs() + 1e-6).all()
    assert found_NO.dtype == dtype and (found_NO.double() - expected_NO).norm() < 0.02 * expected_NO.norm()


def test_a_row_s_answer_is_the_same_beside_any_others() -> None:
    linear, x_ND = Int8Linear(linear_of(64, 32, True)), rows_of(2 * CHUNK_ROWS + 5, 64)
    before = x_ND.clone()
    together = linear(x_ND)
    assert torch.equal(x_ND, before), "what came in was changed"
    for row in (0, 1, CHUNK_ROWS, len(x_ND) - 1):
        assert torch.equal(linear(x_ND[row : row + 1])[0], together[row])
    assert torch.equal(linear(x_ND[:6].view(2, 3, 64)), together[:6].view(2, 3, 32))
    assert linear(x_ND[:0]).shape == (0, 32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_rounded_away(bad: float) -> None:
    x_ND = rows_of(3, 64)
    x_ND[1, 5] = bad
    finite_N = torch.isfinite(Int8Linear(linear_of(64, 32, False))(x_ND)).all(dim=1)
    assert finite_N.tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_quantized_model_judges_nearly_as_the_merged_one_which_stays_as_it_is(
    fresh_model: FreshModel, batch: Batch, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "MIN_WIDTH", 1)
    merged = merge_task(fresh_model(kind, stir=7), 1)
    before = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    expected, int8 = merged(batch[0], batch[1]), quantize(merged)
    found = int8(batch[0], batch[1])
    assert 0 < (found - expected).norm() < 0.2 * expected.norm()
    kinds = {type(module) for module in int8.trunk.modules()}
    assert Int8Linear in kinds and nn.Linear not in kinds and int8.head is merged.head
    assert not any(isinstance(module, Int8Linear) for module in merged.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged.state_dict().items())
    assert torch.equal(merged(batch[0], batch[1]), expected)


def test_narrow_matrices_stay_and_what_is_not_replaced_is_shared(fresh_model: FreshModel, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = merge_task(fresh_model(stir=7), 0)
    narrow = merged.trunk.layers[0].self_attn.k_proj.weight
    monkeypatch.setattr(quantize_module, "MIN_WIDTH", min(narrow.shape) + 1)
    int8 = quantize(merged)
    assert isinstance(int8.trunk.layers[0].mlp.up_proj, Int8Linear)
    assert int8.trunk.layers[0].self_attn.k_proj.weight is narrow
    assert int8.trunk.embed_tokens.weight is merged.trunk.embed_tokens.weight
