"""One pass for all tasks: below the first layer that knows tasks a row runs once, from there on once a task.

Shape legend: B rows, T tasks.
"""

from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers, transformer_layers
from models.heads import pool, trunk_states
from models.relevance import RelevanceModel


class TaskBranch:
    """While entered, a trunk that gets B rows repeats them T times, task by task, where its first
    task-dependent layer begins.

    Works on trunks whose layers take the rows' states first and lead masks and positions with the rows, as
    those of Llama, Qwen, Gemma and BERT do. ValueError, in the pass: a layer takes something else.
    """

    def __init__(self, trunk: nn.Module, num_rows: int, num_tasks: int) -> None:
        self.num_rows, self.num_tasks = num_rows, num_tasks
        layers = transformer_layers(trunk)[1]
        self.num_layers = len(layers)
        dependent = [
            index
            for index, layer in enumerate(layers)
            if any(a.TASK_DEPENDENT for a in adapted_layers(layer).values())
        ]
        self.layers: list[nn.Module] = list(layers)[dependent[0] :] if dependent else []
        self.handles: list[Any] = []

    @property
    def branched(self) -> bool:
        """Whether the trunk's last states are those of T streams; without a layer that knows tasks there is
        one for all.
        """
        return bool(self.layers)

    @property
    def cost_share(self) -> float:
        """Layers that a row goes through in one pass for all tasks, of those in a pass for each task."""
        return (self.num_layers + (self.num_tasks - 1) * len(self.layers)) / (
            self.num_tasks * self.num_layers
        )

    def __enter__(self) -> "TaskBranch":
        self.handles = [
            layer.register_forward_pre_hook(self._repeat_rows, with_kwargs=True) for layer in self.layers
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _repeat_rows(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs["hidden_states"]
        num_tokens = states.shape[1]
        return tuple(self._repeated(value, num_tokens) for value in args), {
            name: self._repeated(value, num_tokens) for name, value in kwargs.items()
        }

    def _repeated(self, value: Any, num_tokens: int) -> Any:
        """Tensors that have a line for each of the B rows, T times; everything else as it is."""
        if isinstance(value, tuple):
            return tuple(self._repeated(item, num_tokens) for item in value)
        # what has one dimension counts tokens, not rows; states come repeated already after the first of
        # these layers
        if (
            not isinstance(value, torch.Tensor)
            or value.dim() < 2
            or len(value) == self.num_rows * self.num_tasks
        ):
            return value
        if len(value) == self.num_rows:
            return value.repeat(self.num_tasks, *[1] * (value.dim() - 1))
        if len(value) in (1, num_tokens):
            return value
        raise ValueError(
            f"a layer of this backbone takes {tuple(value.shape)}, whose rows cannot be told; judge task "
            "by task instead"
        )


def all_task_logits(
    model: RelevanceModel, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Every task's logits (B, C) for every row, by task id: what `forward` gives for that task.

    The layers below the first one that knows tasks run once; from there on each row goes on once a task. Of L
    layers the last k know tasks (adapter.task_layers): the cost is near (L - k + T k) / (T L) of T passes.
    ValueError: the trunk's layers take something whose rows cannot be told (as ALiBi's biases a head); judge
    task by task there.
    """
    num_rows, num_tasks = len(input_ids_BS), len(model.heads.num_labels_T)
    task_TB = torch.arange(num_tasks, device=input_ids_BS.device).repeat_interleave(num_rows)
    with TaskBranch(model.trunk, num_rows, num_tasks) as branch, model.tasks(task_TB):
        hidden = trunk_states(model.trunk, input_ids_BS, mask_BS, model.pooling)
        mask = mask_BS.repeat(num_tasks, 1) if branch.branched else mask_BS
        pooled = pool(hidden, mask, model.pooling)
    pooled_TBD = pooled if branch.branched else pooled.repeat(num_tasks, 1)
    return dict(enumerate(model.heads(pooled_TBD, task_TB).view(num_tasks, num_rows, -1)))
