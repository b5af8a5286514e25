"""Every adapter method against its formula, one row and one token at a time, in float64 unless a dtype is the
promise.

Shape legend: B rows, S tokens, D width in, O width out, T tasks.
"""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from models.adapters.adapted_linear import AdaptedLinear, NotMergeableError
from models.adapters.injection import METHODS
from models.adapters.routing import TaskRouting
from models.config import (
    AdapterConfig,
    AnyAdapterConfig,
    DoRAConfig,
    HydraLoRAConfig,
    LoRAConfig,
    MoELoRAConfig,
    MTLLoRAConfig,
    MTLoRAConfig,
    MultiLoRAConfig,
    PerTaskLoRAConfig,
)

B, S, D, O, T = 6, 4, 5, 7, 4
TASK_B = torch.tensor([2, 0, 2, 1, 0, 2])  # task 3 is absent
CONFIGS: dict[str, AdapterConfig] = {
    "mtl_lora": MTLLoRAConfig(rank=3, num_up_projections=2, lora_alpha=7.0, mixture_temperature=0.3),
    "mtl_lora-diagonal": MTLLoRAConfig(
        rank=3, num_up_projections=2, lora_alpha=7.0, mixture_temperature=0.3, transform="diagonal"
    ),
    "lora": LoRAConfig(rank=3, lora_alpha=7.0),
    "lora-rslora": LoRAConfig(rank=3, lora_alpha=7.0, use_rslora=True),
    "per_task_lora": PerTaskLoRAConfig(rank=3, lora_alpha=7.0),
    "multi_lora": MultiLoRAConfig(rank=3, lora_alpha=7.0, num_pairs=2),
    "moe_lora": MoELoRAConfig(rank=6, lora_alpha=7.0, num_experts=3, task_embedding_width=5),
    "hydra_lora": HydraLoRAConfig(rank=3, lora_alpha=7.0, num_up_projections=2),
    "dora": DoRAConfig(rank=3, lora_alpha=7.0),
    "mtlora-matrix": MTLoRAConfig(rank=3, task_rank=2, shared_scale=1.5, task_scale=0.7, mode="matrix"),
    "mtlora-matrixv2": MTLoRAConfig(rank=3, task_rank=2, shared_scale=1.5, task_scale=0.7),
}
ALL = pytest.mark.parametrize("method", CONFIGS)
FOLDABLE = pytest.mark.parametrize("method", [name for name in CONFIGS if name not in ("hydra_lora", "dora")])
TASKWISE = pytest.mark.parametrize(
    "method", [name for name, config in CONFIGS.items() if METHODS[config.method].TASK_DEPENDENT]
)


def build_layer(
    method: str, bias: bool = True, task: torch.Tensor = TASK_B, dtype: torch.dtype = torch.float64
) -> Any:
    """A layer at its start, on a random linear, with `task` in flight."""
    torch.manual_seed(0)
    routing = TaskRouting()
    routing.task = task
    config = CONFIGS[method]
    base = nn.Linear(D, O, bias=bias, dtype=dtype)
    layer: Any = METHODS[config.method]
    return layer(base, T, config, routing, torch.Generator().manual_seed(1)).eval()


def stir(layer: AdaptedLinear) -> Any:
    """Move every trained number away from its start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained(layer).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return layer


def trained_layer(method: str, **options: Any) -> Any:
    return stir(build_layer(method, **options)).double()


def trained(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def random_input(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def softmax(values: torch.Tensor) -> torch.Tensor:
    return torch.exp(values) / torch.exp(values).sum()


def naive_weight(layer: Any, config: Any, task: int, x_D: torch.Tensor) -> torch.Tensor:
    """(O, D): the matrix that the method's formula puts in the place of W for this token."""
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


def gradients(layer: Any, output: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the inputs and of everything trained, of a weighted sum of the outputs."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tensors = {**trained(layer), "x": x}
    found = torch.autograd.grad((output * direction).sum(), list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g
        for (name, t), g in zip(tensors.items(), found, strict=True)
    }


@ALL
@pytest.mark.parametrize("bias", (True, False))
def test_output_and_all_gradients_are_those_of_the_formula(method: str, bias: bool) -> None:
    layer, x_BSD = trained_layer(method, bias=bias), random_input().requires_grad_()
    expected = naive_output(layer, method, x_BSD, TASK_B)
    found = layer(x_BSD)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    mine, theirs = gradients(layer, found, x_BSD), gradients(layer, expected, x_BSD)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-10, atol=1e-11, msg=name)
        if not (name == "task_TV" or name.startswith("gate")):
            assert theirs[name].any(), name


@ALL
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
def test_fresh_layer_gives_the_base_s_output_bit_for_bit(method: str, bias: bool, dtype: torch.dtype) -> None:
    layer, x_BSD = build_layer(method, bias=bias, dtype=dtype), random_input(dtype)
    assert torch.equal(layer(x_BSD), layer.base(x_BSD))


@ALL
def test_adapter_adds_no_bias_and_is_trained_in_float32_whatever_the_base_is(method: str) -> None:
    layer = build_layer(method, bias=False, dtype=torch.bfloat16)
    assert layer.base.bias is None and not any("bias" in name for name in trained(layer))
    assert {parameter.dtype for parameter in trained(layer).values()} == {torch.float32}
    assert set(trained(layer)) <= set(layer.GROUPS)


@ALL
def test_parameter_count_from_shapes_is_what_the_layer_holds(method: str) -> None:
    layer, config = build_layer(method), CONFIGS[method]
    assert METHODS[config.method].parameter_count(D, O, T, config) == sum(
        parameter.numel() for parameter in trained(layer).values()
    )


@ALL
def test_mixed_batch_is_a_loop_over_its_rows(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    mixed = layer(x_BSD)
    for row, task in enumerate(TASK_B):
        with layer.routing.tasks(task[None]):
            torch.testing.assert_close(layer(x_BSD[row : row + 1])[0], mixed[row], rtol=1e-12, atol=1e-13)


@ALL
def test_a_task_a_token_gives_what_a_task_a_row_gives(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input().requires_grad_()
    by_row = layer(x_BSD)
    grad_by_row = gradients(layer, by_row, x_BSD)
    with layer.routing.tasks(TASK_B[:, None].expand(B, S).contiguous()):
        by_token = layer(x_BSD)
    torch.testing.assert_close(by_token, by_row, rtol=1e-12, atol=1e-13)
    for name, gradient in gradients(layer, by_token, x_BSD).items():
        torch.testing.assert_close(gradient, grad_by_row[name], rtol=1e-10, atol=1e-11, msg=name)


@ALL
def test_rows_without_a_token_dimension_are_rows_too(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    torch.testing.assert_close(layer(x_BSD[:, 1]), layer(x_BSD)[:, 1], rtol=1e-12, atol=1e-13)


@ALL
def test_dimensions_between_rows_and_width_are_all_a_row_s(method: str) -> None:
    layer, x = (
        trained_layer(method),
        torch.randn(B, B, S, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9)),
    )
    found = layer(x)
    for between in range(B):
        torch.testing.assert_close(found[:, between], layer(x[:, between]), rtol=1e-12, atol=1e-13)


@TASKWISE
@pytest.mark.parametrize("by_token", (False, True), ids=("task a row", "task a token"))
def test_gradients_of_many_bfloat16_tokens_are_summed_in_float32(method: str, by_token: bool) -> None:
    """In bfloat16 a sum of ones stops at 256."""
    task = TASK_B[:, None].expand(B, 512).contiguous() if by_token else TASK_B
    x = torch.ones(B, 512, D) + 0.1 * torch.randn(B, 512, D, generator=torch.Generator().manual_seed(6))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = stir(build_layer(method, task=task, dtype=dtype))
        layer(x.to(dtype)).float().sum().backward()
        found[dtype] = {name: parameter.grad for name, parameter in trained(layer).items()}
    for name, expected in found[torch.float32].items():
        assert (found[torch.bfloat16][name] - expected).norm() < 0.05 * expected.norm(), name


@FOLDABLE
def test_folded_pair_is_the_layer_for_its_task(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    for task in range(T):
        down_KD, up_OK = layer.fold(task)
        with layer.routing.tasks(torch.full((B,), task)):
            torch.testing.assert_close(
                layer.base(x_BSD) + x_BSD @ down_KD.T @ up_OK.T, layer(x_BSD), rtol=1e-11, atol=1e-12
            )


@pytest.mark.parametrize("method", [name for name in CONFIGS if name != "hydra_lora"])
def test_merged_weight_is_the_layer_for_its_task(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    for task in range(T):
        with layer.routing.tasks(torch.full((B,), task)):
            expected = layer(x_BSD)
        torch.testing.assert_close(
            nn.functional.linear(x_BSD, layer.merged_weight(task), layer.base.bias),
            expected,
            rtol=1e-11,
            atol=1e-12,
        )


def test_what_cannot_be_folded_says_why() -> None:
    with pytest.raises(NotMergeableError, match="hydra_lora mixes its up-projections anew for each token"):
        trained_layer("hydra_lora").merged_weight(0)
    with pytest.raises(NotMergeableError, match="dora scales the base's own weights"):
        trained_layer("dora").fold(0)


@TASKWISE
def test_absent_task_gets_no_gradient_and_present_ones_do(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    layer(x_BSD).square().sum().backward()
    for name, parameter in trained(layer).items():
        axis = parameter.shape.index(T) if "T" in name.rpartition("_")[2] or name == "transform" else None
        if axis is not None:
            assert not parameter.grad.select(axis, 3).any(), name
            assert all(parameter.grad.select(axis, task).any() for task in (0, 1, 2)), name


@TASKWISE
def test_tasks_answer_differently_and_renumbering_them_changes_nothing_else(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    plain = layer(x_BSD)
    assert not torch.allclose(plain[0], layer.base(x_BSD)[0])
    new_id_T = torch.tensor([3, 0, 1, 2])
    with torch.no_grad():
        for name, parameter in trained(layer).items():
            axis = parameter.shape.index(T) if "T" in name.rpartition("_")[2] or name == "transform" else None
            if axis is not None:
                parameter.copy_(parameter.index_select(axis, new_id_T.argsort()))
    assert not torch.allclose(layer(x_BSD), plain)
    with layer.routing.tasks(new_id_T[TASK_B]):
        torch.testing.assert_close(layer(x_BSD), plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "method", [name for name, config in CONFIGS.items() if not METHODS[config.method].TASK_DEPENDENT]
)
def test_method_without_tasks_needs_none(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    plain = layer(x_BSD)
    with layer.routing.tasks(None):
        assert torch.equal(layer(x_BSD), plain)


@TASKWISE
def test_layer_without_tasks_in_flight_refuses_and_says_what_to_call(method: str) -> None:
    layer = build_layer(method)
    with (
        layer.routing.tasks(None),
        pytest.raises(RuntimeError, match=r"RelevanceModel\.forward sets; call the model"),
    ):
        layer(random_input())


@TASKWISE
@pytest.mark.parametrize("shape", ((B * S, D), (B + 1, S, D), (B,)), ids=str)
def test_input_that_has_not_the_rows_of_the_tasks_is_refused(method: str, shape: tuple[int, ...]) -> None:
    layer = trained_layer(method)
    x = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(
        (ValueError, RuntimeError), match=r"takes \(rows, \.\., width\)" if shape[-1] == D else ""
    ):
        layer(x)


@ALL
def test_autocast_computes_in_bfloat16_and_trains_in_float32(method: str) -> None:
    layer, x_BSD = stir(build_layer(method, dtype=torch.float32)), random_input(torch.float32)
    expected = layer(x_BSD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x_BSD)
    found.float().square().sum().backward()
    assert (found.float() - expected).abs().max() < 0.04 * expected.abs().max()
    for name, parameter in trained(layer).items():
        assert (
            parameter.grad is not None
            and parameter.grad.dtype == torch.float32
            and parameter.grad.isfinite().all()
        ), name


@ALL
def test_bfloat16_base_answers_near_float32_and_trains_in_float32(method: str) -> None:
    wide = stir(build_layer(method, dtype=torch.float32))
    narrow = stir(build_layer(method, dtype=torch.bfloat16))
    x_BSD = random_input(torch.float32)
    found = narrow(x_BSD.bfloat16())
    assert found.dtype == torch.bfloat16
    expected = wide(x_BSD)
    assert (found.float() - expected).abs().max() < 0.04 * expected.abs().max()
    found.float().sum().backward()
    assert {parameter.grad.dtype for parameter in trained(narrow).values() if parameter.grad is not None} == {
        torch.float32
    }


@ALL
def test_dropout_touches_the_adapter_in_training_alone(method: str) -> None:
    layer = trained_layer(method)
    x_BSD = random_input()
    layer.dropout.p = 0.5
    still = layer(x_BSD)
    layer.train()
    torch.manual_seed(3)
    dropped = layer(x_BSD)
    assert not torch.allclose(dropped, still)
    torch.manual_seed(3)
    assert torch.equal(layer(x_BSD), dropped)
    assert torch.equal(layer.eval()(x_BSD), still)
    fresh = build_layer(method).train()
    fresh.dropout.p = 0.5
    assert torch.equal(fresh(x_BSD), fresh.base(x_BSD))


@ALL
def test_compiled_in_one_graph_it_computes_the_same(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x_BSD), layer(x_BSD)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    mine, theirs = gradients(layer, found, x_BSD), gradients(layer, expected, x_BSD)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-10, atol=1e-12, msg=name)


def test_published_setting_on_llama2_7b_trains_what_the_paper_s_code_trains() -> None:
    config = MTLLoRAConfig(rank=8, num_up_projections=3)
    assert 128 * METHODS["mtl_lora"].parameter_count(4096, 4096, 8, config) == 16_845_824
    assert (
        128 * METHODS["mtl_lora"].parameter_count(4096, 4096, 8, replace(config, transform="diagonal"))
        == 16_788_480
    )


def test_dora_leaves_outputs_without_weights_alone() -> None:
    base = nn.Linear(D, O, bias=False)
    with torch.no_grad():
        base.weight[2] = 0.0
    layer: Any = METHODS["dora"](base, 1, DoRAConfig(rank=2), TaskRouting(), torch.Generator().manual_seed(1))  # type: ignore[call-arg,arg-type]
    x_BSD = random_input(torch.float32)
    assert torch.equal(layer(x_BSD), base(x_BSD))
    torch.testing.assert_close(layer.merged_weight(0), base.weight)
    layer(x_BSD).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained(layer).values())


def test_every_method_of_the_config_has_its_layer_and_no_other_is_known() -> None:
    assert set(METHODS) == {
        config.__dataclass_fields__["method"].default for config in get_args(AnyAdapterConfig)
    }


@pytest.mark.parametrize(
    ("kind", "settings"),
    (
        (MTLoRAConfig, {"mode": "matirx"}),
        (MTLLoRAConfig, {"transform": "diag"}),
        (LoRAConfig, {"method": "x"}),
    ),
)
def test_word_that_a_setting_does_not_know_is_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"adapter\.{next(iter(settings))} must be one of .*, not '{next(iter(settings.values()))}'",
    ):
        kind(**settings)


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    for kind in (MTLLoRAConfig, LoRAConfig, PerTaskLoRAConfig, MultiLoRAConfig, HydraLoRAConfig, DoRAConfig):
        assert kind(rank=16, lora_alpha=8.0).scale == 0.5
        assert kind(rank=16, lora_alpha=8.0, use_rslora=True).scale == 8.0 / math.sqrt(16)


def test_published_settings_on_llama2_7b_have_the_published_numbers_of_parameters() -> None:
    def millions(config: AdapterConfig) -> float:
        return 128 * METHODS[config.method].parameter_count(4096, 4096, 8, config) / 1e6

    assert millions(LoRAConfig(rank=8)) == 8.388608
    assert round(millions(PerTaskLoRAConfig(rank=8)), 1) == 67.1
    assert round(millions(MultiLoRAConfig(rank=8)), 1) == 26.7
    # the published code's unused task row is left out
    assert round(millions(MoELoRAConfig(rank=8, num_experts=8)), 2) == 8.52
    assert round(millions(HydraLoRAConfig(rank=8)), 2) == 18.35
    assert round(millions(DoRAConfig(rank=8)), 2) == 8.91
    assert round(millions(MTLoRAConfig(rank=8, task_rank=4)), 1) == 41.9
