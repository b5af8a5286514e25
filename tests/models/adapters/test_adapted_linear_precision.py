"""Dtypes of an adapted layer: any base, trainable parameters in float32."""

import pytest
import torch

from tests.support.adapted_layers import ALL, TASK_B, TASKWISE, B, D, build_layer, random_input, stir, trained


@ALL
def test_adapter_is_float32_without_bias_on_any_base(method: str) -> None:
    layer = build_layer(method, bias=False, dtype=torch.bfloat16)
    assert layer.base.bias is None and not any("bias" in name for name in trained(layer))
    assert {parameter.dtype for parameter in trained(layer).values()} == {torch.float32}
    assert set(trained(layer)) <= set(layer.GROUPS)


@TASKWISE
@pytest.mark.parametrize("by_token", (False, True), ids=("task ids of rows", "task ids of tokens"))
def test_gradients_of_bfloat16_tokens_are_summed_in_float32(method: str, by_token: bool) -> None:
    """In bfloat16 a sum of ones stops growing at 256."""
    task = TASK_B[:, None].expand(B, 512).contiguous() if by_token else TASK_B
    x = torch.ones(B, 512, D) + 0.1 * torch.randn(B, 512, D, generator=torch.Generator().manual_seed(6))
    gradients_by_dtype = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = stir(build_layer(method, task=task, dtype=dtype))
        layer(x.to(dtype)).float().sum().backward()
        gradients_by_dtype[dtype] = {name: parameter.grad for name, parameter in trained(layer).items()}
    for name, expected in gradients_by_dtype[torch.float32].items():
        assert (gradients_by_dtype[torch.bfloat16][name] - expected).norm() < 0.05 * expected.norm(), name


@ALL
def test_autocast_computes_in_bfloat16_and_trains_in_float32(method: str) -> None:
    layer, x_BSD = stir(build_layer(method, dtype=torch.float32)), random_input(torch.float32)
    expected = layer(x_BSD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x_BSD)
    output.float().square().sum().backward()
    assert (output.float() - expected).abs().max() < 0.04 * expected.abs().max()
    for name, parameter in trained(layer).items():
        assert (
            parameter.grad is not None
            and parameter.grad.dtype == torch.float32
            and parameter.grad.isfinite().all()
        ), name


@ALL
def test_bfloat16_base_is_close_to_float32_and_trains(method: str) -> None:
    wide = stir(build_layer(method, dtype=torch.float32))
    narrow = stir(build_layer(method, dtype=torch.bfloat16))
    x_BSD = random_input(torch.float32)
    output = narrow(x_BSD.bfloat16())
    assert output.dtype == torch.bfloat16
    expected = wide(x_BSD)
    assert (output.float() - expected).abs().max() < 0.04 * expected.abs().max()
    output.float().sum().backward()
    assert {parameter.grad.dtype for parameter in trained(narrow).values() if parameter.grad is not None} == {
        torch.float32
    }
