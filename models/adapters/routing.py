"""Which task each row, or each token, of the batch in flight belongs to.

Shape legend: B rows, S tokens, T tasks, F numbers a task.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class TaskShapeError(ValueError):
    """A linear got something else than the rows whose tasks are known."""


class TasksInFlight:
    """Sets a routing's ids while entered, and what layers prepared for them. It can be entered again and
    again: a kept graph is recomputed at each backward pass, and takes what was prepared outside of it as it
    was.
    """

    def __init__(self, routing: "TaskRouting", task: torch.Tensor | None) -> None:
        self.routing, self.task = routing, task
        self.prepared: list[tuple[nn.Module, Any]] = []
        # of the tokens that are read, where the last layer takes these alone (`models.last_layer`)
        self.read: TasksInFlight | None = None
        self.before: list[tuple[TasksInFlight | None, torch.Tensor | None]] = []

    def __enter__(self) -> "TasksInFlight":
        if self.routing.in_flight is not None:
            self.routing.in_flight._take_back()
        self.before.append((self.routing.in_flight, self.routing.task))
        self.routing.in_flight, self.routing.task = self, self.task
        self._hand_out()
        return self

    def __exit__(self, *_: object) -> None:
        self._take_back()
        before, self.routing.task = self.before.pop()
        self.routing.in_flight = before
        if before is not None:
            before._hand_out()

    def prepare(self, layers: Sequence[Any]) -> None:
        """Have the layers make, method by method, what they take of this pass. While entered."""
        methods: dict[Any, list[Any]] = {}
        for layer in layers:
            methods.setdefault(type(layer), []).append(layer)
        self.prepared = [
            pair for method, mine in methods.items() for pair in method.prepare(mine, self.routing)
        ]
        self._hand_out()

    def _take_back(self) -> None:
        for layer, _ in self.prepared:
            layer.__dict__["prepared"] = None

    def _hand_out(self) -> None:
        # past nn.Module's own setting, which takes twenty times as long: this happens for each layer, and for
        # all of them where one is recomputed
        for layer, prepared in self.prepared:
            layer.__dict__["prepared"] = prepared


class TaskRouting:
    """The task ids of the batch in flight, shared by a model and all its adapted layers. Set for one forward
    pass, never longer: a layer that runs with ids of another batch would compute something else without a
    word.
    """

    def __init__(self) -> None:
        self.task: torch.Tensor | None = None
        self.in_flight: TasksInFlight | None = None

    def tasks(self, task: torch.Tensor | None) -> TasksInFlight:
        """Run with these ids: (B,) of rows, or (B, S) of tokens."""
        return TasksInFlight(self, task)

    def current(self) -> torch.Tensor:
        """The ids in flight; RuntimeError outside a forward pass of the model."""
        if self.task is None:
            raise RuntimeError(
                "an adapted layer ran without task ids, which RelevanceModel.forward sets; call the "
                "model, and enable gradient checkpointing"
                " with RelevanceModel.enable_gradient_checkpointing, which keeps the ids of each forward pass"
            )
        return self.task

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For torch's `checkpoint(context_fn=...)`: the recomputation sees the ids of its own forward pass,
        however many ran since.
        """
        return nullcontext(), self.in_flight or self.tasks(self.task)

    def check(self, x: torch.Tensor) -> None:
        """TaskShapeError: `x` has not the rows of the ids, as inside a mixture of experts that flattens its
        tokens.
        """
        task = self.current()
        if x.shape[: task.dim()] != task.shape or x.dim() == task.dim():
            raise TaskShapeError(
                f"an adapted layer got {tuple(x.shape)} with task ids of {tuple(task.shape)}: it "
                "takes (rows, .., width);"
                " leave it out of adapter.target_modules, or name it in adapter.exclude_modules"
            )

    def gather(self, value_TF: torch.Tensor) -> torch.Tensor:
        """Each row's line of `value_TF`, in its dtype: (B, F) for rows, (B, S, F) for tokens. Cast it
        afterwards: gradients of rows and tokens are summed in this dtype, and bfloat16 loses count at 256.
        """
        # an embedding's backward is a dense sum in fixed order; that of plain indexing adds in any order on a
        # GPU
        return functional.embedding(self.current(), value_TF)

    def gather_like(self, value_TF: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`gather` in the dtype of `x`, with dimensions of size 1 so that it multiplies `x`'s tokens.
        TaskShapeError: as `check` says.
        """
        self.check(x)
        rows = self.gather(value_TF).to(x.dtype)
        return rows.view(*rows.shape[:-1], *[1] * (x.dim() - rows.dim()), rows.shape[-1])

    def own_task(self, num_tasks: int, dtype: torch.dtype) -> torch.Tensor:
        """(.., T, 1) for the ids' dimensions: 1 at the task of each row or token, 0 at the others."""
        return self.gather(torch.eye(num_tasks, dtype=dtype, device=self.current().device)).unsqueeze(-1)
