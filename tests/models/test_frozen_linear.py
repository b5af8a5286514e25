"""Frozen weights laid out for oneDNN: products and gradients stay those of the linear, and a weight that moved is never taken for what it was.

Shape legend: D width in, O width out.
"""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.frozen_linear import LAID_OUT, FrozenLinear, frozen_product, frozen_product_gradient, lay_out_frozen, multiply
from models.merge import merge_task
from models.relevance import RelevanceModel

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
FreshModel = Callable[..., RelevanceModel]


def linear(width_in: int = 24, width_out: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width_in, width_out, bias).requires_grad_(False)


def test_products_and_gradients_are_the_linear_s_for_any_number_of_tokens() -> None:
    for bias in (True, False):
        usual = linear(bias=bias)
        frozen, reference = FrozenLinear(usual), linear(bias=bias).double()
        for shape in ((24,), (1, 24), (3, 24), (2, 5, 24), (1, 700, 24), (0, 24)):
            x = torch.randn(shape, requires_grad=True)
            wide = x.detach().double().requires_grad_()
            y, exact = frozen(x), reference(wide)
            weights = torch.randn(y.shape)
            (y * weights).sum().backward()
            (exact * weights).sum().backward()
            torch.testing.assert_close(y.double(), exact, atol=2e-6, rtol=2e-6)
            torch.testing.assert_close(x.grad.double(), wide.grad, atol=4e-6, rtol=4e-6)


def test_what_comes_in_may_lie_in_any_order() -> None:
    frozen, usual = FrozenLinear(linear()), linear()
    x = torch.randn(24, 7, requires_grad=True)
    torch.testing.assert_close(frozen(x.t()), usual(x.t()))
    (frozen(x.t()).t() * torch.arange(7.0)).sum().backward()
    torch.testing.assert_close(x.grad, usual.weight.sum(0)[:, None] * torch.arange(7.0))


def test_torch_compile_is_told_the_truth_about_them() -> None:
    frozen = FrozenLinear(linear())
    for shape in ((7, 24), (1, 5, 24)):
        torch.library.opcheck(frozen_product, (torch.randn(shape, requires_grad=True), frozen.weight))
        torch.library.opcheck(frozen_product_gradient, (torch.randn(*shape[:-1], 40), frozen.weight))


def test_a_step_of_a_compiled_model_multiplies_what_was_laid_out(fresh_model: FreshModel, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compile_module(module, backend="aot_eager", **options))
    multiplied = []
    monkeypatch.setattr("models.frozen_linear.multiply", lambda x, blocks: multiplied.append(x.shape) or multiply(x, blocks))
    torch._dynamo.reset()
    model = fresh_model()
    model.compile_layers()
    num_layers = sum(isinstance(module, FrozenLinear) for module in model.trunk.modules())
    logits = model.train()(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long), torch.tensor([1]))
    assert num_layers and len(multiplied) == num_layers
    logits[:, 0].sum().backward()
    assert len(multiplied) == 2 * num_layers


def test_a_weight_that_was_changed_is_multiplied_as_it_is_now() -> None:
    frozen, x = FrozenLinear(linear(bias=False)), torch.randn(3, 24)
    before = frozen(x)
    with torch.no_grad():
        frozen.weight.mul_(2)
    torch.testing.assert_close(frozen(x), 2 * before)
    frozen.weight = nn.Parameter(torch.ones(40, 24), requires_grad=False)
    torch.testing.assert_close(frozen(x), x.sum(1, keepdim=True).expand(3, 40))


def test_what_was_laid_out_goes_with_its_layer() -> None:
    gc.collect()
    before = len(LAID_OUT)
    layers = nn.Sequential(linear(), linear(40, 24))
    lay_out_frozen(layers)
    assert len(LAID_OUT) == before + 2
    again = FrozenLinear(linear())
    again.weight = layers[0].weight
    assert FrozenLinear(again).laid_out is layers[0].laid_out, "a weight that two layers share is laid out once"
    del layers, again
    gc.collect()
    assert len(LAID_OUT) == before


def test_only_frozen_linears_in_float32_are_laid_out() -> None:
    layers = nn.ModuleDict({"frozen": linear(), "trained": linear().requires_grad_(), "narrow": linear().bfloat16(), "wide": linear().double()})
    lay_out_frozen(layers)
    assert [name for name, layer in layers.items() if isinstance(layer, FrozenLinear)] == ["frozen"]
    assert list(layers.state_dict()) == [f"{name}.{tensor}" for name in layers for tensor in ("weight", "bias")]


def test_compiled_models_have_them_and_merge_as_ever(fresh_model: FreshModel) -> None:
    usual, model = fresh_model(stir=3), fresh_model(stir=3)
    ids, mask = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 2, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    model.compile_layers()
    assert any(isinstance(module, FrozenLinear) for module in model.trunk.modules())
    assert list(model.state_dict()) == list(usual.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(merge_task(model, 1)(ids, mask), merge_task(usual, 1)(ids, mask))
