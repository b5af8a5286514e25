"""Adapters over weights of 4 and 8 bits: everything equals a model over the dequantised weights.

Shape legend: B rows, S tokens, D width in, O width out.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.adapters import METHODS
from models.adapters.adapted_linear import NotMergeableError
from models.adapters.injection import adapted_layers
from models.adapters.routing import TaskRouting
from models.inference.merging import merge_task
from models.quantization import QuantizedLinear, freeze_linear, linear_dtype, replace_quantized_linears
from models.relevance import RelevanceModel
from models.serialization.export import ExportTask, export_merged, export_peft
from models.training.flat_parameters import FlatModel
from pipeline.runtime.flops import forward_flops_per_token
from tests.support.adapted_layers import ALL, CONFIGS, TASK_B, B, S, T, stir, trained
from tests.support.stored_linears import KINDS, MAKERS, install_stub, store

D, O = 64, 96
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def stub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("package") == "stub":
        install_stub(monkeypatch)


def random_linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, O, bias=bias).to(dtype)


def dequantised(linear: QuantizedLinear) -> nn.Linear:
    """Return a plain linear with the dequantised weight."""
    plain = nn.Linear(D, O, bias=linear.bias is not None).to(linear.dtype)
    plain.load_state_dict(linear.state_dict())
    return plain


def adapted(method: str, base: nn.Linear) -> Any:
    """Return a stirred layer of a method over `base`."""
    routing = TaskRouting()
    routing.task = TASK_B
    config = CONFIGS[method]
    layer: Any = METHODS[config.method].layer
    return stir(layer(base, T, config, routing, torch.Generator().manual_seed(1)).eval())


def output_and_gradients(
    layer: Any, x_BSD: torch.Tensor, is_term: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the output (of the adapter alone if `is_term`), and all gradients of a weighted sum of it."""
    x_BSD = x_BSD.clone().requires_grad_()
    output = layer(x_BSD)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (output * direction).sum().backward()
    found = {name: parameter.grad for name, parameter in trained(layer).items()}
    term = output - layer.base(x_BSD) if is_term else output
    return term.detach().double(), {"x": x_BSD.grad, **found}  # type: ignore[dict-item]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@MAKERS
@KIND
@ALL
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_adapter_equals_float64_over_the_dequantised_base(
    method: str, kind: str, package: str, dtype: torch.dtype
) -> None:
    layer = adapted(method, store(random_linear(dtype), kind, package))
    assert isinstance(layer.base, QuantizedLinear) and layer.dtype == (
        dtype if kind == "nf4" else torch.float32
    )
    reference = adapted(method, dequantised(layer.base)).double()
    x_BSD = torch.randn(B, S, D, generator=torch.Generator().manual_seed(4)).to(dtype)
    actual, actual_gradients = output_and_gradients(layer, x_BSD, is_term=True)
    expected, expected_gradients = output_and_gradients(reference, x_BSD.double(), is_term=True)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(actual, expected) < tolerance
    for name, gradient in expected_gradients.items():
        assert actual_gradients[name] is not None, name
        if gradient.norm() > 1e-9:
            assert relative_error(actual_gradients[name], gradient) < tolerance, name


@MAKERS
@KIND
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_quantised_linear_equals_a_plain_one(kind: str, package: str, dtype: torch.dtype, bias: bool) -> None:
    original = random_linear(dtype, bias)
    linear: Any = freeze_linear(store(original, kind, package), dtype)
    plain = dequantised(linear)
    assert 0 < relative_error(linear.weight, original.weight) < (0.15 if kind == "nf4" else 0.02)
    x_BSD = torch.randn(B, S, D).to(dtype)
    results = []
    for module in (linear, plain):
        x = x_BSD.clone().requires_grad_()
        module(x).float().square().sum().backward()
        results.append((module(x).detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])  # type: ignore[arg-type]
    assert (linear.in_features, linear.out_features, linear_dtype(linear)) == (D, O, dtype)
    assert not any(parameter.requires_grad for parameter in linear.parameters())


@MAKERS
@KIND
def test_dequantised_weight_is_not_kept_for_the_backward_pass(kind: str, package: str) -> None:
    linear = freeze_linear(store(random_linear(), kind, package))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda _: None):
        linear(torch.randn(2, D, requires_grad=True))
    assert torch.Size((O, D)) not in kept
    assert not [name for name, tensor in linear.named_parameters() if tensor.shape == (O, D)]


@MAKERS
@KIND
def test_scales_survive_a_change_of_dtype(kind: str, package: str) -> None:
    linear: Any = freeze_linear(store(random_linear(), kind, package))
    before = linear.weight
    assert torch.equal(linear.to(torch.bfloat16).weight, before)
    assert torch.equal(copy.deepcopy(linear).weight, before)


@MAKERS
@KIND
@ALL
def test_merged_weight_is_over_the_dequantised_base(method: str, kind: str, package: str) -> None:
    layer = adapted(method, store(random_linear(), kind, package))
    reference = adapted(method, dequantised(layer.base))
    for task in range(T):
        try:
            expected = reference.merged_weight(task)
        except NotMergeableError:
            with pytest.raises(NotMergeableError):
                layer.merged_weight(task)
            continue
        torch.testing.assert_close(layer.merged_weight(task), expected)


@pytest.mark.parametrize("dtype", (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2))
@ALL
def test_other_quantised_weight_is_refused(method: str, dtype: torch.dtype) -> None:
    linear = random_linear()
    linear.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match="its weight is .*int8|float8.*; use an unquantised model"):
        adapted(method, linear)


def test_packed_codes_in_a_floating_dtype_are_refused() -> None:
    linear = random_linear()
    linear.weight = nn.Parameter(torch.zeros(O * D // 4, 1, dtype=torch.bfloat16), requires_grad=False)
    with pytest.raises(ValueError, match=r"bfloat16 of shape \(1536, 1\) in place of .* \(96, 64\)"):
        freeze_linear(linear)


def test_refused_linear_of_a_trunk_is_named() -> None:
    trunk = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    trunk[1].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="linear 1 cannot be used: its weight is int8"):
        replace_quantized_linears(trunk, torch.float32)


def quantise(model: RelevanceModel, kind: str, package: str) -> RelevanceModel:
    """Return a copy of a model whose trunk's linears are stored in few bits."""
    quantised = copy.deepcopy(model)
    for name, module in list(quantised.trunk.named_modules()):
        if isinstance(module, nn.Linear):
            stored = store(module, kind, package)
            quantised.trunk.set_submodule(name, freeze_linear(stored, torch.float32))
    return quantised


def dequantise(quantised: RelevanceModel, plain: RelevanceModel) -> RelevanceModel:
    """Return a plain model with the dequantised weights of another."""
    dequantised_model = copy.deepcopy(plain)
    dequantised_model.load_state_dict(quantised.state_dict())
    return dequantised_model


@MAKERS
@KIND
@pytest.mark.parametrize("method", ("mtl_lora", "dora"))
def test_model_equals_one_over_the_dequantised_base(
    fresh_model: Callable[..., RelevanceModel], batch: Batch, kind: str, package: str, method: str
) -> None:
    plain = fresh_model(stir=3, method=type(CONFIGS[method]), target_modules=("q_proj", "o_proj", "up_proj"))
    quantised = quantise(plain, kind, package)
    expected_model = dequantise(quantised, plain)
    assert any(isinstance(module, QuantizedLinear) for module in quantised.trunk.modules())
    before = quantised(*batch).detach()
    assert relative_error(before[:, :2], plain(*batch)[:, :2].detach()) > 1e-3
    gradients = []
    for model in (quantised, expected_model):
        model.train()
        model.enable_gradient_checkpointing()
        flat = FlatModel(model)
        flat(*batch)[:, :2].sum().backward()
        gradients.append({name: parameter.grad for name, parameter in flat.trainable_state().items()})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, msg=name)
        assert gradients[0][name].any(), name


@MAKERS
@KIND
def test_merged_model_and_export_are_dequantised(
    fresh_model: Callable[..., RelevanceModel], batch: Batch, tmp_path: Path, kind: str, package: str
) -> None:
    plain = fresh_model(stir=3)
    quantised = quantise(plain, kind, package)
    expected_model = dequantise(quantised, plain)
    for task in range(3):
        merged, expected = merge_task(quantised, task), merge_task(expected_model, task)
        torch.testing.assert_close(merged(*batch[:2]), expected(*batch[:2]))
        state = merged.trunk.state_dict()
        assert state.keys() == expected.trunk.state_dict().keys()
        for name, tensor in expected.trunk.state_dict().items():
            torch.testing.assert_close(state[name], tensor, msg=name)
    names = set(adapted_layers(quantised.trunk))
    assert all(type(merged.trunk.get_submodule(name)) is nn.Linear for name in names)
    task = ExportTask(quantised, 0, ["no", "yes"], "some/base", None, pad_id=0)
    export_merged(task, tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if name.startswith("model."):
            expected_tensor = merge_task(expected_model, 0).trunk.state_dict()[name.removeprefix("model.")]
            torch.testing.assert_close(tensor, expected_tensor, msg=name)
    with pytest.raises(ValueError, match="over quantised weights.*use --format merged"):
        export_peft(task, tmp_path)
    assert forward_flops_per_token(quantised) == forward_flops_per_token(plain)
    # what has no adapter stays small
    assert isinstance(merged.trunk.layers[0].mlp.up_proj, QuantizedLinear)
