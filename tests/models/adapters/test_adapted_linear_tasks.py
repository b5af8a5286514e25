"""Batches that mix tasks: each row has the output and the gradients of its own task.

Shape legend: B rows, S tokens, D width in, T tasks.
"""

import pytest
import torch

from models.adapters import METHODS
from tests.support.adapted_layers import (
    ALL,
    CONFIGS,
    TASK_B,
    TASKWISE,
    B,
    D,
    S,
    T,
    build_layer,
    gradients,
    random_input,
    trained,
    trained_layer,
)


@ALL
def test_mixed_batch_equals_a_loop_over_rows(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    mixed = layer(x_BSD)
    for row, task in enumerate(TASK_B):
        with layer.routing.task_context(task[None]):
            torch.testing.assert_close(layer(x_BSD[row : row + 1])[0], mixed[row], rtol=1e-12, atol=1e-13)


@ALL
def test_task_ids_of_tokens_equal_those_of_rows(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input().requires_grad_()
    by_row = layer(x_BSD)
    grad_by_row = gradients(layer, by_row, x_BSD)
    with layer.routing.task_context(TASK_B[:, None].expand(B, S).contiguous()):
        by_token = layer(x_BSD)
    torch.testing.assert_close(by_token, by_row, rtol=1e-12, atol=1e-13)
    for name, gradient in gradients(layer, by_token, x_BSD).items():
        torch.testing.assert_close(gradient, grad_by_row[name], rtol=1e-10, atol=1e-11, msg=name)


@ALL
def test_rows_need_no_token_dimension(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    torch.testing.assert_close(layer(x_BSD[:, 1]), layer(x_BSD)[:, 1], rtol=1e-12, atol=1e-13)


@ALL
def test_middle_dimensions_belong_to_the_row(method: str) -> None:
    layer, x = (
        trained_layer(method),
        torch.randn(B, B, S, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9)),
    )
    output = layer(x)
    for between in range(B):
        torch.testing.assert_close(output[:, between], layer(x[:, between]), rtol=1e-12, atol=1e-13)


@TASKWISE
def test_only_present_tasks_get_gradients(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    layer(x_BSD).square().sum().backward()
    for name, parameter in trained(layer).items():
        axis = parameter.shape.index(T) if "T" in name.rpartition("_")[2] or name == "transform" else None
        if axis is not None:
            assert not parameter.grad.select(axis, 3).any(), name
            assert all(parameter.grad.select(axis, task).any() for task in (0, 1, 2)), name


@TASKWISE
def test_renumbering_tasks_permutes_their_outputs(method: str) -> None:
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
    with layer.routing.task_context(new_id_T[TASK_B]):
        torch.testing.assert_close(layer(x_BSD), plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "method", [name for name, config in CONFIGS.items() if not METHODS[config.method].layer.TASK_DEPENDENT]
)
def test_task_independent_method_needs_no_task_ids(method: str) -> None:
    layer, x_BSD = trained_layer(method), random_input()
    plain = layer(x_BSD)
    with layer.routing.task_context(None):
        assert torch.equal(layer(x_BSD), plain)


@TASKWISE
def test_layer_without_task_ids_is_refused_with_a_remedy(method: str) -> None:
    layer = build_layer(method)
    with (
        layer.routing.task_context(None),
        pytest.raises(RuntimeError, match=r"RelevanceModel\.forward sets; call the model"),
    ):
        layer(random_input())


@TASKWISE
@pytest.mark.parametrize("shape", ((B * S, D), (B + 1, S, D), (B,)), ids=str)
def test_input_with_other_rows_than_the_tasks_is_refused(method: str, shape: tuple[int, ...]) -> None:
    layer = trained_layer(method)
    x = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(
        (ValueError, RuntimeError), match=r"takes \(rows, \.\., width\)" if shape[-1] == D else ""
    ):
        layer(x)
