"""One pass for all tasks: rows run once up to the first task-dependent layer, and once per task from there.

Shape legend: B rows, S tokens, D width, T tasks, C labels of the finest task.
"""

from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers, transformer_layers
from models.heads import pool, trunk_states
from models.relevance import RelevanceModel


def all_task_logits(
    model: RelevanceModel, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Return every task's logits (B, C) for every row, by task id, equal to those of `forward`.

    If k of L layers depend on the task (adapter.task_layers), the cost is about (L - k + T k) / (T L) of T
    passes.

    Raises:
        ValueError: The trunk's layers take a tensor whose rows are unknown, such as ALiBi's biases per head;
            run each task by itself.
    """
    num_rows, num_tasks = len(input_ids_BS), len(model.heads.num_labels_T)
    task_TB = torch.arange(num_tasks, device=input_ids_BS.device).repeat_interleave(num_rows)
    with TaskBranch(model.trunk, num_rows, num_tasks) as branch, model.task_context(task_TB):
        hidden = trunk_states(model.trunk, input_ids_BS, mask_BS, model.pooling)
        mask = mask_BS.repeat(num_tasks, 1) if branch.is_branched else mask_BS
        pooled = pool(hidden, mask, model.pooling)
    pooled_TBD = pooled if branch.is_branched else pooled.repeat(num_tasks, 1)
    return dict(enumerate(model.heads(pooled_TBD, task_TB).view(num_tasks, num_rows, -1)))


class TaskBranch:
    """A context in which a trunk that gets B rows repeats them T times at its first task-dependent layer.

    The repeated rows are ordered by task. The layers must take the rows' states first, and masks and
    positions whose first dimension is the rows, as those of Llama, Qwen, Gemma and BERT do. Other layers
    raise ValueError during the pass.
    """

    def __init__(self, trunk: nn.Module, num_rows: int, num_tasks: int) -> None:
        self.num_rows, self.num_tasks = num_rows, num_tasks
        layers = transformer_layers(trunk)[1]
        self.num_layers = len(layers)
        dependent = [index for index, layer in enumerate(layers) if _depends_on_task(layer)]
        self.layers: list[nn.Module] = list(layers)[dependent[0] :] if dependent else []
        self.handles: list[Any] = []

    @property
    def is_branched(self) -> bool:
        """Return True if the trunk's last states have T * B rows: some layers depend on the task."""
        return bool(self.layers)

    @property
    def cost_share(self) -> float:
        """Cost of one branched pass as a share of that of T passes."""
        branched_layers = self.num_layers + (self.num_tasks - 1) * len(self.layers)
        return branched_layers / (self.num_tasks * self.num_layers)

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
        repeated_kwargs = {name: self._repeat(value, num_tokens) for name, value in kwargs.items()}
        return tuple(self._repeat(value, num_tokens) for value in args), repeated_kwargs

    def _repeat(self, value: Any, num_tokens: int) -> Any:
        """Repeat tensors whose first dimension is the B rows T times; return all other values unchanged."""
        if isinstance(value, tuple):
            return tuple(self._repeat(item, num_tokens) for item in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 2:  # one dimension is that of tokens
            return value
        if len(value) == self.num_rows * self.num_tasks:  # repeated by an earlier layer
            return value
        if len(value) == self.num_rows:
            return value.repeat(self.num_tasks, *[1] * (value.dim() - 1))
        if len(value) in (1, num_tokens):
            return value
        raise ValueError(
            f"a layer of this backbone takes {tuple(value.shape)}, whose rows are unknown; run each task by "
            "itself"
        )


def _depends_on_task(layer: nn.Module) -> bool:
    return any(adapted.TASK_DEPENDENT for adapted in adapted_layers(layer).values())
