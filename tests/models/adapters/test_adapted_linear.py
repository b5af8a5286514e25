"""Every adapter method against its formula, token by token, in float64 unless the test is about a dtype.

Shape legend: B rows, S tokens, D width in, O width out, T tasks.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models.adapters import METHODS, load_methods
from models.adapters.adapted_linear import AdaptedLinear, NotMergeableError
from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.adapters.routing import TaskRouting
from models.config import AdapterConfig
from tests.support.adapted_layers import (
    ALL,
    CONFIGS,
    TASK_B,
    B,
    D,
    O,
    T,
    build_layer,
    gradients,
    random_input,
    trained,
    trained_layer,
)

FOLDABLE = pytest.mark.parametrize("method", [name for name in CONFIGS if name not in ("hydra_lora", "dora")])


def softmax(values: torch.Tensor) -> torch.Tensor:
    return torch.exp(values) / torch.exp(values).sum()


def naive_weight(layer: Any, config: Any, task: int, x_D: torch.Tensor) -> torch.Tensor:
    """Return the matrix (O, D) that replaces W for this token in the method's formula."""
    W = layer.base.weight
    s = config.scale
    if config.method == "mtl_lora":
        share_N = softmax(layer.mix_TN[task] / config.mixture_temperature)
        transform = layer.transform[task]
        lambda_RR = torch.diag(transform) if transform.dim() == 1 else transform
        return (
            W
            + s
            * sum(share_N[i] * layer.up_ONR[:, i] for i in range(len(share_N)))
            @ lambda_RR
            @ layer.down_RD
        )
    if config.method == "lora":
        return W + s * layer.up_OR @ layer.down_RD
    if config.method == "per_task_lora":
        return W + s * layer.up_OTR[:, task] @ layer.down_TRD[task]
    if config.method == "multi_lora":
        pairs = range(config.num_pairs)
        return W + s * sum(
            torch.diag(layer.gain_ON[:, i]) @ layer.up_ONR[:, i] @ layer.down_NRD[i] for i in pairs
        )
    if config.method == "moe_lora":
        weight_E, width = softmax(layer.gate_EV @ layer.task_TV[task]), config.rank // config.num_experts
        experts = [(weight_E[e], slice(e * width, (e + 1) * width)) for e in range(config.num_experts)]
        return W + s * sum(weight * layer.up_OR[:, part] @ layer.down_RD[part] for weight, part in experts)
    if config.method == "hydra_lora":
        share_N = softmax(layer.router_ND @ x_D)
        return W + s * sum(share_N[i] * layer.up_ONR[:, i] for i in range(len(share_N))) @ layer.down_RD
    if config.method == "dora":
        direction = W + s * layer.up_OR @ layer.down_RD
        return torch.diag(layer.magnitude_O / direction.detach().square().sum(dim=1).sqrt()) @ direction
    shared = s * layer.up_OR @ layer.down_RD if config.mode == "matrixv2" else 0.0
    return W + shared + config.task_scale * layer.up_OTQ[:, task] @ layer.down_TQD[task]


def naive_output(layer: Any, method: str, x_BSD: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
    bias_O = 0.0 if layer.base.bias is None else layer.base.bias
    return torch.stack(
        [
            torch.stack([naive_weight(layer, CONFIGS[method], task, x_D) @ x_D + bias_O for x_D in x_SD])
            for x_SD, task in zip(x_BSD, task_B.tolist(), strict=True)
        ]
    )


@ALL
@pytest.mark.parametrize("bias", (True, False))
def test_output_and_gradients_match_the_formula(method: str, bias: bool) -> None:
    layer, x_BSD = trained_layer(method, bias=bias), random_input().requires_grad_()
    expected = naive_output(layer, method, x_BSD, TASK_B)
    actual = layer(x_BSD)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    actual_gradients, expected_gradients = gradients(layer, actual, x_BSD), gradients(layer, expected, x_BSD)
    for name in expected_gradients:
        torch.testing.assert_close(
            actual_gradients[name], expected_gradients[name], rtol=1e-10, atol=1e-11, msg=name
        )
        if not (name == "task_TV" or name.startswith("gate")):
            assert expected_gradients[name].any(), name


@ALL
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
def test_new_layer_equals_its_base_bit_for_bit(method: str, bias: bool, dtype: torch.dtype) -> None:
    layer, x_BSD = build_layer(method, bias=bias, dtype=dtype), random_input(dtype)
    assert torch.equal(layer(x_BSD), layer.base(x_BSD))


@ALL
def test_parameter_count_matches_the_layer(method: str) -> None:
    layer, config = build_layer(method), CONFIGS[method]
    assert METHODS[config.method].layer.parameter_count(D, O, T, config) == sum(
        parameter.numel() for parameter in trained(layer).values()
    )


@FOLDABLE
def test_folded_pair_equals_the_layer(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    for task in range(T):
        down_KD, up_OK = layer.fold(task)
        with layer.routing.task_context(torch.full((B,), task)):
            torch.testing.assert_close(
                layer.base(x_BSD) + x_BSD @ down_KD.T @ up_OK.T, layer(x_BSD), rtol=1e-11, atol=1e-12
            )


@pytest.mark.parametrize("method", [name for name in CONFIGS if name != "hydra_lora"])
def test_merged_weight_equals_the_layer(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    for task in range(T):
        with layer.routing.task_context(torch.full((B,), task)):
            expected = layer(x_BSD)
        torch.testing.assert_close(
            nn.functional.linear(x_BSD, layer.merged_weight(task), layer.base.bias),
            expected,
            rtol=1e-11,
            atol=1e-12,
        )


def test_unfoldable_method_gives_the_reason() -> None:
    with pytest.raises(NotMergeableError, match="hydra_lora mixes its up-projections for each token"):
        trained_layer("hydra_lora").merged_weight(0)
    with pytest.raises(NotMergeableError, match="dora rescales the base's weights"):
        trained_layer("dora").fold(0)


@ALL
def test_dropout_affects_only_the_adapter_in_training(method: str) -> None:
    layer = trained_layer(method)
    x_BSD = random_input()
    layer.dropout.p = 0.5
    without_dropout = layer(x_BSD)
    layer.train()
    torch.manual_seed(3)
    dropped = layer(x_BSD)
    assert not torch.allclose(dropped, without_dropout)
    torch.manual_seed(3)
    assert torch.equal(layer(x_BSD), dropped)
    assert torch.equal(layer.eval()(x_BSD), without_dropout)
    fresh = build_layer(method).train()
    fresh.dropout.p = 0.5
    assert torch.equal(fresh(x_BSD), fresh.base(x_BSD))


@pytest.mark.e2e
@ALL
def test_layer_compiles_to_one_graph_with_equal_results(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(x_BSD), layer(x_BSD)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    actual_gradients, expected_gradients = gradients(layer, actual, x_BSD), gradients(layer, expected, x_BSD)
    for name in expected_gradients:
        torch.testing.assert_close(
            actual_gradients[name], expected_gradients[name], rtol=1e-10, atol=1e-12, msg=name
        )


def test_parameter_count_on_llama2_7b_matches_the_published_code() -> None:
    config = MTLLoRAConfig(rank=8, num_up_projections=3)
    assert 128 * METHODS["mtl_lora"].layer.parameter_count(4096, 4096, 8, config) == 16_845_824
    assert (
        128 * METHODS["mtl_lora"].layer.parameter_count(4096, 4096, 8, replace(config, transform="diagonal"))
        == 16_788_480
    )


def test_dora_keeps_pruned_outputs_at_zero() -> None:
    base = nn.Linear(D, O, bias=False)
    with torch.no_grad():
        base.weight[2] = 0.0
    build: Any = METHODS["dora"].layer
    layer = build(base, 1, DoRAConfig(rank=2), TaskRouting(), torch.Generator().manual_seed(1))
    x_BSD = random_input(torch.float32)
    assert torch.equal(layer(x_BSD), base(x_BSD))
    torch.testing.assert_close(layer.merged_weight(0), base.weight)
    layer(x_BSD).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained(layer).values())


def test_every_method_is_registered_with_its_layer() -> None:
    load_methods()
    assert len(METHODS) >= 8
    for name, method in METHODS.items():
        assert method.config.__dataclass_fields__["method"].default == name
        assert issubclass(method.layer, AdaptedLinear)


@pytest.mark.parametrize(
    ("kind", "settings"),
    (
        (MTLoRAConfig, {"mode": "matirx"}),
        (MTLLoRAConfig, {"transform": "diag"}),
        (LoRAConfig, {"method": "x"}),
    ),
)
def test_unknown_setting_value_is_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"adapter\.{next(iter(settings))} must be one of .*, not '{next(iter(settings.values()))}'",
    ):
        kind(**settings)


def test_rslora_divides_by_the_square_root_of_the_rank() -> None:
    for kind in (MTLLoRAConfig, LoRAConfig, PerTaskLoRAConfig, MultiLoRAConfig, HydraLoRAConfig, DoRAConfig):
        assert kind(rank=16, lora_alpha=8.0).scale == 0.5
        assert kind(rank=16, lora_alpha=8.0, use_rslora=True).scale == 8.0 / math.sqrt(16)


def test_published_settings_give_the_published_parameter_counts() -> None:
    def millions(config: AdapterConfig) -> float:
        return 128 * METHODS[config.method].layer.parameter_count(4096, 4096, 8, config) / 1e6

    assert millions(LoRAConfig(rank=8)) == 8.388608
    assert round(millions(PerTaskLoRAConfig(rank=8)), 1) == 67.1
    assert round(millions(MultiLoRAConfig(rank=8)), 1) == 26.7
    # the published code's unused task row is left out
    assert round(millions(MoELoRAConfig(rank=8, num_experts=8)), 2) == 8.52
    assert round(millions(HydraLoRAConfig(rank=8)), 2) == 18.35
    assert round(millions(DoRAConfig(rank=8)), 2) == 8.91
    assert round(millions(MTLoRAConfig(rank=8, task_rank=4)), 1) == 41.9
