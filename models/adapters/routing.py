"""Which task each row, or each token, of the batch in flight belongs to.

Shape legend: B rows, S tokens, T tasks, F numbers a task.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional


class TaskShapeError(ValueError):
    """A linear got something else than the rows whose tasks are known."""


class TasksInFlight:
    """Sets a routing's ids while entered. It can be entered again and again: a kept graph is recomputed at each backward pass."""

    def __init__(self, routing: "TaskRouting", task: torch.Tensor | None) -> None:
        self.routing, self.task = routing, task
        self.before: list[torch.Tensor | None] = []

    def __enter__(self) -> None:
        self.before.append(self.routing.task)
        self.routing.task = self.task

    def __exit__(self, *_: object) -> None:
        self.routing.task = self.before.pop()


class TaskRouting:
    """The task ids of the batch in flight, shared by a model and all its adapted layers. Set for one forward pass, never longer:
    a layer that runs with ids of another batch would compute something else without a word."""

    def __init__(self) -> None:
        self.task: torch.Tensor | None = None

    def tasks(self, task: torch.Tensor | None) -> TasksInFlight:
        """Run with these ids: (B,) of rows, or (B, S) of tokens."""
        return TasksInFlight(self, task)

    def current(self) -> torch.Tensor:
        """The ids in flight; RuntimeError outside a forward pass of the model."""
        if self.task is None:
            raise RuntimeError(
                "an adapted layer ran without task ids, which RelevanceModel.forward sets; call the model, and enable gradient checkpointing"
                " with RelevanceModel.enable_gradient_checkpointing, which keeps the ids of each forward pass"
            )
        return self.task

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For torch's `checkpoint(context_fn=...)`: the recomputation sees the ids of its own forward pass, however many ran since."""
        return nullcontext(), self.tasks(self.task)

    def gather(self, value_TF: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Each row's line of `value_TF`, in its dtype: (B, F) for rows, (B, S, F) for tokens. Cast it afterwards: gradients of rows and tokens
        are summed in this dtype, and bfloat16 loses count at 256.

        TaskShapeError: `x` has not the rows of the ids, as inside a mixture of experts that flattens its tokens.
        """
        task = self.current()
        if x.shape[: task.dim()] != task.shape or x.dim() == task.dim():
            raise TaskShapeError(
                f"an adapted layer got {tuple(x.shape)} with task ids of {tuple(task.shape)}: it takes (rows, .., width);"
                " leave it out of adapter.target_modules, or name it in adapter.exclude_modules"
            )
        # an embedding's backward is a dense sum in fixed order; that of plain indexing adds in any order on a GPU
        return functional.embedding(task, value_TF)

    def gather_like(self, value_TF: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`gather` in the dtype of `x`, with dimensions of size 1 so that it multiplies `x`'s tokens."""
        rows = self.gather(value_TF, x).to(x.dtype)
        return rows.view(*rows.shape[:-1], *[1] * (x.dim() - rows.dim()), rows.shape[-1])

    def own_task(self, x: torch.Tensor, num_tasks: int) -> torch.Tensor:
        """(.., T, 1) in the dtype of `x`: 1 at the task of each row or token of `x`, 0 at the others."""
        return self.gather_like(torch.eye(num_tasks, dtype=x.dtype, device=x.device), x).unsqueeze(-1)
