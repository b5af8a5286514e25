"""Pooling and the output heads."""

import pytest
import torch
from torch.nn import functional

from models.heads import TaskHeads, pool

NUM_LABELS_T = (2, 3, 5)
TASK_B = torch.tensor([2, 0, 0, 2])  # task 1 is absent


def build_heads() -> TaskHeads:
    heads = TaskHeads(4, NUM_LABELS_T).double()
    with torch.no_grad():
        heads.weight_KD.normal_(generator=torch.Generator().manual_seed(0))
        heads.bias_K.normal_(generator=torch.Generator().manual_seed(1))
    return heads


def random_states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_row_gets_the_logits_of_its_task() -> None:
    heads, pooled_BD = build_heads(), random_states(4, 4)
    logits_BC = heads(pooled_BD, TASK_B)
    starts = (0, 2, 5)
    for row, task in enumerate(TASK_B.tolist()):
        own = slice(starts[task], starts[task] + NUM_LABELS_T[task])
        expected = functional.linear(pooled_BD[row], heads.weight_KD[own], heads.bias_K[own])
        torch.testing.assert_close(logits_BC[row, : NUM_LABELS_T[task]], expected, rtol=1e-13, atol=1e-13)


def test_logits_beyond_a_tasks_labels_are_minus_infinity() -> None:
    logits_BC = build_heads()(random_states(3, 4), torch.tensor([0, 1, 2]))
    assert logits_BC.shape == (3, 5)
    assert torch.equal(logits_BC.isneginf().sum(dim=1), torch.tensor([3, 2, 0]))
    assert (
        logits_BC[0, :2].isfinite().all()
        and logits_BC[1, :3].isfinite().all()
        and logits_BC[2].isfinite().all()
    )


def test_softmax_over_columns_equals_softmax_over_task_labels() -> None:
    logits_BC = build_heads()(random_states(4, 4), TASK_B)
    probability_BC = logits_BC.softmax(dim=1)
    torch.testing.assert_close(probability_BC.sum(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(probability_BC[1, :2], logits_BC[1, :2].softmax(dim=0))
    assert not probability_BC[1, 2:].any()


def test_head_of_an_absent_task_gets_zero_gradient() -> None:
    heads = build_heads()
    logits_BC = heads(random_states(4, 4), TASK_B)
    functional.cross_entropy(logits_BC, torch.tensor([4, 1, 0, 2])).backward()
    assert not heads.weight_KD.grad[2:5].any() and not heads.bias_K.grad[2:5].any()
    assert heads.weight_KD.grad[:2].any() and heads.weight_KD.grad[5:].any()


def test_init_from_direction_orders_labels_along_it() -> None:
    heads = TaskHeads(4, NUM_LABELS_T)
    direction_D = torch.tensor([1.0, 0.0, 2.0, 0.0])
    heads.init_from_direction(direction_D, 3.0)
    for task, count in enumerate(NUM_LABELS_T):
        towards, away = heads(torch.stack([direction_D, -direction_D]), torch.tensor([task, task]))[:, :count]
        assert (towards.diff() > 0).all() and (away.diff() < 0).all()
        assert (towards[-1] - towards[0]).item() == pytest.approx(3.0 * direction_D.dot(direction_D).item())


def test_init_from_direction_gives_equal_logits_at_its_null_space() -> None:
    heads = TaskHeads(4, NUM_LABELS_T)
    heads.init_from_direction(torch.tensor([1.0, 0.0, 2.0, 0.0]), 1.0)
    logits_BC = heads(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.tensor([1]))
    assert not logits_BC[0, :3].any()


def test_biases_from_label_shares_give_log_shares_as_mean_logits() -> None:
    heads, pooled_BD = build_heads(), random_states(4, 4)
    before = {name: parameter.detach().clone() for name, parameter in heads.named_parameters()}
    share_TC = torch.tensor(
        [[0.9, 0.1, 0.0, 0.0, 0.0], [0.2, 0.3, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.15, 0.25]],
        dtype=torch.float64,
    )
    heads.init_biases_from_label_shares(pooled_BD, TASK_B, share_TC)
    logits_BC = heads(pooled_BD, TASK_B)
    for task, count in ((0, 2), (2, 5)):
        mean_C = logits_BC[task == TASK_B][:, :count].mean(dim=0)
        torch.testing.assert_close(mean_C, share_TC[task, :count].log(), rtol=1e-12, atol=1e-12)
    assert torch.equal(heads.bias_K[2:5], before["bias_K"][2:5]), "task 1 has no row"
    assert torch.equal(heads.weight_KD, before["weight_KD"])


def test_head_index_tables_are_not_saved() -> None:
    assert set(TaskHeads(4, NUM_LABELS_T).state_dict()) == {"weight_KD", "bias_K"}


MASK_BS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def test_last_token_pooling_takes_the_last_real_token() -> None:
    hidden_BSD = random_states(3, 4, 5)
    expected_BD = torch.stack([hidden_BSD[0, 3], hidden_BSD[1, 1], hidden_BSD[2, 0]])
    assert torch.equal(pool(hidden_BSD, MASK_BS, "last"), expected_BD)


def test_mean_pooling_averages_the_real_tokens() -> None:
    hidden_BSD = random_states(3, 4, 5)
    expected_BD = torch.stack([hidden_BSD[0].mean(0), hidden_BSD[1, :2].mean(0), hidden_BSD[2, 0]])
    torch.testing.assert_close(pool(hidden_BSD, MASK_BS, "mean"), expected_BD)


@pytest.mark.parametrize("pooling", ("last", "mean"))
def test_pooling_ignores_padding(pooling: str) -> None:
    hidden_BSD = random_states(3, 4, 5)
    disturbed_BSD = torch.where(MASK_BS.bool().unsqueeze(-1), hidden_BSD, 1e6)
    assert torch.equal(pool(hidden_BSD, MASK_BS, pooling), pool(disturbed_BSD, MASK_BS, pooling))


@pytest.mark.parametrize("pooling", ("last", "mean"))
def test_pooling_returns_float32_for_any_trunk_dtype(pooling: str) -> None:
    assert pool(random_states(3, 4, 5).bfloat16(), MASK_BS, pooling).dtype == torch.float32
