"""Training losses as sums: ranks exchange sums and weights of each task, and averages are taken once.

Shape legend: B rows, C labels of the finest task, T tasks.
"""

import torch
from torch.nn import functional


def row_losses(logits_BC: torch.Tensor, label_B: torch.Tensor, relevant_from_B: torch.Tensor) -> torch.Tensor:
    """Return each row's loss (B,) in float32: cross entropy of its label plus cross entropy of its relevance.

    Decisions depend on relevance alone, so the second term gives it as much weight as the label.

    Args:
        logits_BC: Logits; -inf beyond a task's labels.
        label_B: Labels.
        relevant_from_B: The first label of the row's task that counts as relevant.
    """
    logits_BC = logits_BC.float()
    label_loss_B = functional.cross_entropy(logits_BC, label_B, reduction="none")
    label_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    is_relevant_BC = label_C[None, :] >= relevant_from_B[:, None]
    log_prob_BC = functional.log_softmax(logits_BC, dim=1)
    has_same_relevance_BC = is_relevant_BC == (label_B >= relevant_from_B)[:, None]
    relevance_loss_B = -torch.logsumexp(log_prob_BC.masked_fill(~has_same_relevance_BC, float("-inf")), dim=1)
    return label_loss_B + relevance_loss_B


def task_sums(
    value_B: torch.Tensor, weight_B: torch.Tensor, task_B: torch.Tensor, num_tasks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of `value_B` and the sum of weights for each task, both (T,)."""
    zeros_T = torch.zeros(num_tasks, dtype=value_B.dtype, device=value_B.device)
    return zeros_T.index_add(0, task_B, value_B * weight_B), zeros_T.index_add(0, task_B, weight_B)
