"""Row losses and their sums per task."""

import torch
from torch.nn import functional

from models.losses import row_losses, task_sums

TASK_B = torch.tensor([2, 0, 2, 1, 0, 2])


def test_task_sums_equal_a_loop_over_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    value_B, weight_B = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    sums_T, weights_T = task_sums(value_B, weight_B, TASK_B, 4)
    expected_sums, expected_weights = [0.0] * 4, [0.0] * 4
    for value, weight, task in zip(value_B.tolist(), weight_B.tolist(), TASK_B.tolist(), strict=True):
        expected_sums[task] += value * weight
        expected_weights[task] += weight
    torch.testing.assert_close(sums_T, torch.tensor(expected_sums, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        weights_T, torch.tensor(expected_weights, dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_absent_task_has_sum_and_weight_zero() -> None:
    sums_T, weights_T = task_sums(torch.ones(6), torch.ones(6), TASK_B, 5)
    assert not sums_T[3:].any() and not weights_T[3:].any()


def test_task_sums_of_two_halves_add_up() -> None:
    value_B = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight_B = torch.ones(6, dtype=torch.float64)
    whole = task_sums(value_B, weight_B, TASK_B, 3)
    halves = [
        task_sums(value_B[part], weight_B[part], TASK_B[part], 3) for part in (slice(0, 2), slice(2, 6))
    ]
    for index in (0, 1):
        torch.testing.assert_close(halves[0][index] + halves[1][index], whole[index], rtol=1e-14, atol=0)


def test_task_sum_gradient_is_the_row_weights() -> None:
    value_B = torch.ones(6, requires_grad=True)
    weight_B = torch.arange(1.0, 7.0)
    task_sums(value_B, weight_B, TASK_B, 3)[0][2].backward()
    assert torch.equal(value_B.grad, torch.tensor([1.0, 0.0, 3.0, 0.0, 0.0, 6.0]))


LOGITS_BC = torch.tensor([[0.3, -1.2, float("-inf")], [2.0, 0.1, -0.4], [5.0, float("-inf"), float("-inf")]])
LABEL_B = torch.tensor([1, 2, 0])
RELEVANT_FROM_B = torch.tensor([1, 1, 1])


def test_row_loss_is_grade_plus_relevance_cross_entropy() -> None:
    logits_BC = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    label_B, relevant_from_B = torch.arange(40) % 5, torch.arange(40) // 5 % 4 + 1
    losses_B = row_losses(logits_BC, label_B, relevant_from_B)
    for logits_C, label, relevant_from, loss in zip(
        logits_BC, label_B.tolist(), relevant_from_B.tolist(), losses_B, strict=True
    ):
        share_C = logits_C.softmax(dim=0)
        relevant = share_C[relevant_from:].sum()
        own_side = relevant if label >= relevant_from else 1 - relevant
        torch.testing.assert_close(loss, -share_C[label].log() - own_side.log(), rtol=1e-4, atol=1e-5)


def test_task_of_two_labels_counts_its_cross_entropy_twice() -> None:
    losses_B = row_losses(LOGITS_BC[:1], LABEL_B[:1], RELEVANT_FROM_B[:1])
    torch.testing.assert_close(losses_B[0], -2 * LOGITS_BC[0, :2].log_softmax(dim=0)[1])


def test_relevance_loss_is_zero_when_all_labels_are_relevant() -> None:
    grade_B = functional.cross_entropy(LOGITS_BC, LABEL_B, reduction="none")
    torch.testing.assert_close(row_losses(LOGITS_BC, LABEL_B, torch.tensor([0, 0, 0])), grade_B)


def test_absent_labels_have_zero_gradients() -> None:
    logits_BC = LOGITS_BC.clone().requires_grad_()
    row_losses(logits_BC, LABEL_B, RELEVANT_FROM_B).sum().backward()
    assert logits_BC.grad.isfinite().all()
    assert not logits_BC.grad[LOGITS_BC.isneginf()].any()
    assert logits_BC.grad[:2, :2].all()


def test_confidently_wrong_row_has_finite_loss_and_gradient() -> None:
    logits_BC = torch.tensor([[1e4, 0.0, -1e4, float("-inf")]], requires_grad=True)
    loss_B = row_losses(logits_BC, torch.tensor([2]), torch.tensor([1]))
    loss_B.sum().backward()
    assert loss_B.isfinite().all() and logits_BC.grad.isfinite().all()


def test_loss_is_float32_even_from_bfloat16_logits() -> None:
    logits_BC = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    label_B, relevant_from_B = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 2, 2])
    losses_B = row_losses(logits_BC, label_B, relevant_from_B)
    assert losses_B.dtype == torch.float32
    assert torch.equal(losses_B, row_losses(logits_BC.float(), label_B, relevant_from_B))
