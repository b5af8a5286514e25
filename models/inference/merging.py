"""One task's adapters merged into the weights: a model of that task alone, at the base model's cost.

Shape legend: B rows, S tokens, C labels of the task.
"""

import copy
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.heads import Pooling, pool, trunk_states
from models.relevance import RelevanceModel


class MergedModel(nn.Module):
    """Judges pairs of one task with plain weights."""

    def __init__(self, trunk: nn.Module, head: nn.Linear, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.pooling = pooling

    def forward(self, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Token ids padded on the right, their mask (1 real, 0 padding) -> logits (B, C)."""
        return self.head(
            pool(trunk_states(self.trunk, input_ids_BS, mask_BS, self.pooling), mask_BS, self.pooling)
        )


@torch.no_grad()
def merge_task(model: RelevanceModel, task_index: int) -> MergedModel:
    """The model of one task. `model` stays as it is: what adapters do not touch is shared, not copied, and
    merged weights are computed in float32 from the pristine base weights and rounded to their dtype once, so
    tasks can be merged in turn for ever.

    NotMergeableError: the method has no weight for a task. ValueError: no such task, or a weight is not
    finite.
    """
    check_task(model, task_index)
    shared = [*model.trunk.parameters(), *model.trunk.buffers()]
    replaced: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for name, layer in adapted_layers(model.trunk).items():
        weight_OD = layer.merged_weight(task_index).to(layer.base.weight.dtype)
        if not torch.isfinite(weight_OD).all():
            raise ValueError(
                f"the merged weight of {name} is not finite; the adapter's numbers are damaged or too "
                f"large for {weight_OD.dtype}"
            )
        replaced[id(layer)] = plain_linear(weight_OD, layer.base.bias)
    # deepcopy takes what stands in its memo for the copy of a thing
    trunk = copy.deepcopy(model.trunk, replaced)
    return MergedModel(trunk.requires_grad_(False).eval(), task_head(model, task_index), model.pooling).eval()


def check_task(model: RelevanceModel, task_index: int) -> None:
    """ValueError: the model has no such task."""
    num_tasks = len(model.heads.num_labels_T)
    if not 0 <= task_index < num_tasks:
        raise ValueError(
            f"task {task_index} is none of this model's, which counts them from 0 to {num_tasks - 1}"
        )


def plain_linear(weight_OD: torch.Tensor, bias_O: torch.Tensor | None) -> nn.Linear:
    """A frozen linear of these numbers."""
    linear = nn.Linear(weight_OD.shape[1], weight_OD.shape[0], bias=bias_O is not None, device="meta")
    linear.weight = nn.Parameter(weight_OD, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
    return linear


def task_head(model: RelevanceModel, task_index: int) -> nn.Linear:
    """The head of one task by itself."""
    rows = model.heads.label_rows(task_index)
    return plain_linear(
        model.heads.weight_KD.detach()[rows].clone(), model.heads.bias_K.detach()[rows].clone()
    )
