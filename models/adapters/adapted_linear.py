"""What all adapter methods are: a frozen linear, and beside it a product of low rank.

Shape legend: D width in, O width out, X and K widths of the low-rank space below and above what a method does
there. `..` stands for (rows, tokens) or any shape before the width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.adapters.routing import TaskRouting
from models.config import AdapterConfig

ParameterGroup = Literal["projections", "transforms", "mixtures"]


class NotMergeableError(ValueError):
    """A method's output is no linear map of a task's inputs, so that no weight can stand for it."""


class AdaptedLinear(nn.Module):
    """y = base(x) + product_scale * up(low_rank(down x)). A method gives `down_XD`, `low_rank`, `up_OK`,
    `parameter_count` and `fold`.

    Parameters are float32 whatever the base's dtype (near 1 a bfloat16 step is 0.004, so a rate of 1e-4 would
    never move a transform); products run in the dtype of the inputs.
    """

    TASK_DEPENDENT: ClassVar[bool]  # whether the output depends on the row's task
    GROUPS: ClassVar[dict[str, ParameterGroup]]  # parameter -> group of the optimizer
    CASTS_PROJECTIONS: ClassVar[bool] = True  # to the inputs' dtype before anything is done with them
    prepared: Any = None  # what `prepare` made for the pass in flight

    def __init__(self, base: nn.Linear, config: AdapterConfig, routing: TaskRouting) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.config: Any = config
        self.routing = routing
        self.scale = self.product_scale = config.scale
        self.dropout = nn.Dropout(config.lora_dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(.., D) -> (.., O)."""
        u = functional.linear(self.dropout(x), self.down_XD().to(x.dtype))
        return add_product(self.base(x), self.low_rank(u), self.up_OK(), self.product_scale)

    def down_XD(self) -> torch.Tensor:
        """All that is a product with the inputs, as one matrix."""
        raise NotImplementedError

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        """(.., X) -> (.., K): what the up-projections are applied to."""
        raise NotImplementedError

    def up_OK(self) -> torch.Tensor:
        """The up-projections as one matrix."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, layers: Sequence[Any], routing: TaskRouting) -> list[tuple[Any, Any]]:
        """Layers of this method, each with what it takes of a pass with the ids in flight, where that is made
        for all of them at once.
        """
        return []

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: Any) -> int:
        """Trainable numbers of one adapted linear, from its shapes."""
        raise NotImplementedError

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain LoRA pair this layer is for one task, lossless: down (K, D) and up (O, K), the scale
        inside up. NotMergeableError.
        """
        raise NotImplementedError

    def merged_weight(self, task_index: int) -> torch.Tensor:
        """(O, D) in float32 at least: the one weight this layer is for a task, from the pristine base weight.
        NotMergeableError.
        """
        down_KD, up_OK = self.fold(task_index)
        weight_OD = self.base.weight
        wide = torch.promote_types(weight_OD.dtype, torch.float32)
        return torch.addmm(weight_OD.to(wide), up_OK.to(wide), down_KD.to(wide))


def add_product(y: torch.Tensor, z: torch.Tensor, up_OK: torch.Tensor, scale: float) -> torch.Tensor:
    """y + scale * z up^T in one pass over y: (.., O) + (.., K)."""
    rows = torch.addmm(y.flatten(0, -2), z.flatten(0, -2), up_OK.to(z.dtype).t(), alpha=scale)
    return rows.view(y.shape)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """Uniform in [-bound, bound): what kaiming_uniform(a=sqrt(5)) draws for a fan-in of 1/bound^2."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
