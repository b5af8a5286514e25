"""The relevance model: a frozen trunk with adapters, pooled, with one head a task.

Shape legend: B rows, S tokens, C labels of the finest task.
"""

import torch
from torch import nn

from models.adapters.mtl_lora import TaskRouting
from models.backbone import Backbone
from models.config import ModelConfig
from models.heads import Pooling, TaskHeads, pool
from models.inject import inject


class RelevanceModel(nn.Module):
    """Judges query-ad pairs of several tasks in one batch."""

    def __init__(self, trunk: nn.Module, heads: TaskHeads, routing: TaskRouting, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.routing = routing
        self.pooling = pooling

    def forward(self, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        """Token ids padded on the right, their mask (1 real, 0 padding), task ids -> logits (B, C); -inf beyond a task's labels.

        Task ids are not checked here: on a GPU that would wait for the device. Check them where rows are collated.
        """
        self.routing.task_B = task_B
        return self.heads(self.pooled(input_ids_BS, mask_BS), task_B)

    def pooled(self, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """What the heads read (B, D); the routing already knows the rows' tasks."""
        if self.pooling == "last":
            # no mask: with padding on the right causality already hides it, and attention without a mask takes the fast path
            hidden_BSD = self.trunk(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        else:
            hidden_BSD = self.trunk(input_ids=input_ids_BS, attention_mask=mask_BS).last_hidden_state
        return pool(hidden_BSD, mask_BS, self.pooling)

    @torch.no_grad()
    def start_at_label_shares(self, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor, task_B: torch.Tensor, share_TC: torch.Tensor) -> None:
        """Set the heads' biases so that on these rows the mean logits of each task are the log shares of its labels.

        A language model leans to yes or to no; without this the first steps of a run go into unlearning that.
        """
        self.routing.task_B = task_B
        self.heads.start_at_label_shares(self.pooled(input_ids_BS, mask_BS), task_B, share_TC)

    def trainable_state(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name: adapters and heads, never the backbone."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_trainable_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the trained tensors. ValueError names what is missing, unknown or of another shape."""
        mine = self.trainable_state()
        problems = [f"{name} is missing" for name in mine.keys() - tensors.keys()]
        problems += [f"{name} is unknown" for name in tensors.keys() - mine.keys()]
        problems += [
            f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(mine[name].shape)}"
            for name in mine.keys() & tensors.keys()
            if tensors[name].shape != mine[name].shape
        ]
        if problems:
            raise ValueError(f"these weights are of another model: {'; '.join(sorted(problems)[:5])}")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(tensors[name])

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, total) numbers."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def build_model(config: ModelConfig, backbone: Backbone, seed: int) -> RelevanceModel:
    """A fresh model on a loaded backbone, whose trunk it takes over. The same seed gives the same numbers."""
    routing = inject(backbone.trunk, config.adapter, len(config.num_labels_T), seed)
    heads = TaskHeads(backbone.width, config.num_labels_T)
    direction_D = backbone.answer_direction()
    if direction_D is not None:
        heads.start_from_direction(direction_D, HEAD_SCALE)
    else:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            heads.weight_KD.normal_(0.0, backbone.width**-0.5, generator=generator)
    return RelevanceModel(backbone.trunk, heads, routing, backbone.pooling)


HEAD_SCALE = 3.0  # logits from worst to best label span this many times the yes-minus-no logit
