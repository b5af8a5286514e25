"""Merge one task's adapters into the weights: a model of that task alone, at the base model's cost.

Shape legend: B rows, S tokens, D width in, O width out, C labels of the task.
"""

import copy
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.heads import Pooling, pool, trunk_states
from models.relevance import RelevanceModel


class MergedModel(nn.Module):
    """Classifier of query-ad pairs for one task, without adapters."""

    def __init__(self, trunk: nn.Module, head: nn.Linear, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.pooling = pooling

    def forward(self, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) of token ids padded on the right and their mask (1 real, 0 padding)."""
        hidden_BSD = trunk_states(self.trunk, input_ids_BS, mask_BS, self.pooling)
        return self.head(pool(hidden_BSD, mask_BS, self.pooling))


@torch.no_grad()
def merge_task(model: RelevanceModel, task_index: int) -> MergedModel:
    """Return the model of one task, and leave `model` unchanged.

    Tensors without adapters are shared, not copied. Merged weights are computed in float32 from the base
    weights and rounded once, so any number of merges gives the same result.

    Raises:
        NotMergeableError: The adapter method cannot be merged.
        ValueError: There is no such task, or a merged weight is not finite.
    """
    check_task_index(model, task_index)
    shared = [*model.trunk.parameters(), *model.trunk.buffers()]
    replaced: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for name, layer in adapted_layers(model.trunk).items():
        weight_OD = layer.merged_weight(task_index).to(layer.dtype)
        if not torch.isfinite(weight_OD).all():
            raise ValueError(
                f"merged weight of {name} is not finite; the adapter is damaged, or its weights are too "
                f"large for {weight_OD.dtype}"
            )
        replaced[id(layer)] = plain_linear(weight_OD, layer.base.bias)
    # deepcopy uses an object's entry in its memo as the copy
    trunk = copy.deepcopy(model.trunk, replaced)
    return MergedModel(trunk.requires_grad_(False).eval(), task_head(model, task_index), model.pooling).eval()


def check_task_index(model: RelevanceModel, task_index: int) -> None:
    """Check a task index.

    Raises:
        ValueError: The model has no such task.
    """
    num_tasks = len(model.heads.num_labels_T)
    if not 0 <= task_index < num_tasks:
        raise ValueError(f"task {task_index} does not exist; this model has tasks 0 to {num_tasks - 1}")


def plain_linear(weight_OD: torch.Tensor, bias_O: torch.Tensor | None) -> nn.Linear:
    """Return a frozen linear with these tensors."""
    linear = nn.Linear(weight_OD.shape[1], weight_OD.shape[0], bias=bias_O is not None, device="meta")
    linear.weight = nn.Parameter(weight_OD, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
    return linear


def task_head(model: RelevanceModel, task_index: int) -> nn.Linear:
    """Return the head of one task as a linear of its own."""
    labels = model.heads.label_slice(task_index)
    weight_KD, bias_K = model.heads.weight_KD.detach(), model.heads.bias_K.detach()
    return plain_linear(weight_KD[labels].clone(), bias_K[labels].clone())
