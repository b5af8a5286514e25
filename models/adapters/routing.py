"""Task ids of the rows, or tokens, of the batch that runs through a model.

Shape legend: B rows, S tokens, T tasks, F numbers per task. `..` stands for (B,) or (B, S).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class TaskShapeError(ValueError):
    """The input of an adapted layer does not have the rows of the task ids."""


class TaskRouting:
    """The active task ids, shared by a model and all its adapted layers.

    They are set for one forward pass only: with the ids of another batch a layer would silently compute
    something else.
    """

    def __init__(self) -> None:
        self.task: torch.Tensor | None = None  # (B,) or (B, S)
        self.context: TaskContext | None = None

    def task_context(self, task: torch.Tensor | None) -> "TaskContext":
        """Return a context in which these ids are active: (B,) of rows, or (B, S) of tokens."""
        return TaskContext(self, task)

    def current_tasks(self) -> torch.Tensor:
        """Return the active ids.

        Raises:
            RuntimeError: No forward pass of the model is running.
        """
        if self.task is None:
            raise RuntimeError(
                "an adapted layer ran without task ids, which RelevanceModel.forward sets; call the model, "
                "and enable gradient checkpointing with RelevanceModel.enable_gradient_checkpointing, which "
                "keeps the ids of each forward pass"
            )
        return self.task

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Return contexts for torch's `checkpoint(context_fn=...)`.

        The recomputation uses the ids of its own forward pass, even after other passes.
        """
        return nullcontext(), self.context or self.task_context(self.task)

    def check_rows(self, x: torch.Tensor) -> None:
        """Check that `x` has the rows of the active ids.

        Raises:
            TaskShapeError: It has other rows, as inside a mixture of experts that flattens its tokens.
        """
        task = self.current_tasks()
        if x.shape[: task.dim()] != task.shape or x.dim() == task.dim():
            raise TaskShapeError(
                f"an adapted layer got {tuple(x.shape)} with task ids of {tuple(task.shape)}: it takes "
                "(rows, .., width); leave it out of adapter.target_modules, or name it in "
                "adapter.exclude_modules"
            )

    def gather(self, value_TF: torch.Tensor) -> torch.Tensor:
        """Return the values of each row's or token's task (.., F), in the dtype of `value_TF`.

        Cast the result and not `value_TF`: gradients are summed in this dtype, and in bfloat16 sums stop
        growing at 256.
        """
        # the backward pass of an embedding sums in fixed order; that of indexing does not on a GPU
        return functional.embedding(self.current_tasks(), value_TF)

    def gather_like(self, value_TF: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return `gather(value_TF)` in the dtype of `x`, with dimensions that broadcast over its tokens.

        Raises:
            TaskShapeError: `x` does not have the rows of the active ids.
        """
        self.check_rows(x)
        rows = self.gather(value_TF).to(x.dtype)
        return rows.view(*rows.shape[:-1], *[1] * (x.dim() - rows.dim()), rows.shape[-1])

    def task_one_hot(self, num_tasks: int, dtype: torch.dtype) -> torch.Tensor:
        """Return (.., T, 1): 1 at the task of each row or token, 0 elsewhere."""
        identity_TT = torch.eye(num_tasks, dtype=dtype, device=self.current_tasks().device)
        return self.gather(identity_TT).unsqueeze(-1)


class TaskContext:
    """Task ids and the values that layers prepared for them, active while entered.

    It can be entered repeatedly: each backward pass of a retained graph recomputes with it and reuses the
    prepared values.
    """

    def __init__(self, routing: TaskRouting, task: torch.Tensor | None) -> None:
        self.routing, self.task = routing, task
        self.prepared: list[tuple[nn.Module, Any]] = []
        # for a last layer that processes only the read tokens (models/last_layer.py)
        self.read_context: TaskContext | None = None
        self.outer: list[tuple[TaskContext | None, torch.Tensor | None]] = []

    def __enter__(self) -> "TaskContext":
        if self.routing.context is not None:
            self.routing.context._clear_prepared()
        self.outer.append((self.routing.context, self.routing.task))
        self.routing.context, self.routing.task = self, self.task
        self._assign_prepared()
        return self

    def __exit__(self, *_: object) -> None:
        self._clear_prepared()
        outer, self.routing.task = self.outer.pop()
        self.routing.context = outer
        if outer is not None:
            outer._assign_prepared()

    def prepare(self, layers: Sequence[Any]) -> None:
        """Have each method prepare its layers for this pass. Call it while entered."""
        by_method: dict[Any, list[Any]] = {}
        for layer in layers:
            by_method.setdefault(type(layer), []).append(layer)
        self.prepared = [
            pair
            for method, method_layers in by_method.items()
            for pair in method.prepare(method_layers, self.routing)
        ]
        self._assign_prepared()

    def _clear_prepared(self) -> None:
        for layer, _ in self.prepared:
            object.__setattr__(layer, "prepared", None)

    def _assign_prepared(self) -> None:
        # nn.Module's own __setattr__ takes ten times as long, and gradient checkpointing comes here for all
        # layers at each recomputed one
        for layer, prepared in self.prepared:
            object.__setattr__(layer, "prepared", prepared)
