"""Losses as sums: per-task sums and weights travel between ranks, averages are taken once.

Shape legend: B rows, C labels of the finest task, T tasks.
"""

import torch
from torch.nn import functional


def row_losses(logits_BC: torch.Tensor, label_B: torch.Tensor, relevant_from_B: torch.Tensor) -> torch.Tensor:
    """Loss of each row (B,) in float32: cross entropy over the task's labels plus that of relevant against
    irrelevant.

    The second term makes the split that decisions are made on count as much as the fine grades. Logits of
    -inf weigh nothing.
    """
    logits_BC = logits_BC.float()
    grade_B = functional.cross_entropy(logits_BC, label_B, reduction="none")
    label_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    relevant_BC = label_C[None, :] >= relevant_from_B[:, None]
    log_share_BC = functional.log_softmax(logits_BC, dim=1)
    same_side_BC = relevant_BC == (label_B >= relevant_from_B)[:, None]
    side_B = -torch.logsumexp(log_share_BC.masked_fill(~same_side_BC, float("-inf")), dim=1)
    return grade_B + side_B


def task_sums(
    value_B: torch.Tensor, weight_B: torch.Tensor, task_B: torch.Tensor, num_tasks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per task: the weighted sum of `value_B` and the sum of weights, both (T,)."""
    zeros_T = torch.zeros(num_tasks, dtype=value_B.dtype, device=value_B.device)
    return zeros_T.index_add(0, task_B, value_B * weight_B), zeros_T.index_add(0, task_B, weight_B)
