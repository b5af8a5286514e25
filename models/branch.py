"""One pass for all tasks: below the first layer that knows tasks a row runs once, from there on once a task.

Shape legend: B rows, T tasks.
"""

from typing import Any

import torch
from torch import nn

from models.inject import adapted_layers, transformer_layers


class TaskBranch:
    """While entered, a trunk repeats its rows T times, task by task, where its first task-dependent layer begins.

    Works on any trunk whose layers take the rows' states first; masks and positions follow the rows.
    """

    def __init__(self, trunk: nn.Module, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        layers = transformer_layers(trunk)[1]
        dependent = [index for index, layer in enumerate(layers) if any(a.TASK_DEPENDENT for a in adapted_layers(layer).values())]
        self.layers: list[nn.Module] = list(layers)[dependent[0] :] if dependent else []
        self.handles: list[Any] = []
        self.num_rows = 0

    @property
    def branched(self) -> bool:
        """Whether the trunk's last states are those of T streams; without a layer that knows tasks there is one for all."""
        return bool(self.layers)

    def __enter__(self) -> "TaskBranch":
        for position, layer in enumerate(self.layers):
            hook = self._repeat_rows if position == 0 else self._repeat_companions
            self.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _repeat_rows(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs["hidden_states"]
        self.num_rows = len(states)
        return self._repeat_companions(layer, args, kwargs)

    def _repeat_companions(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(self._repeated(value) for value in args), {name: self._repeated(value) for name, value in kwargs.items()}

    def _repeated(self, value: Any) -> Any:
        """Tensors that have a line for each of the B rows, T times; everything else as it is."""
        if isinstance(value, tuple):
            return tuple(self._repeated(item) for item in value)
        # states come repeated already after the first layer; what has one dimension counts tokens, not rows
        if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == self.num_rows:
            return value.repeat(self.num_tasks, *[1] * (value.dim() - 1))
        return value
