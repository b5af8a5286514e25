"""One LoRA pair per task.

    y = W x + s B_t A_t x

All tasks' pairs are applied as one dense product, with the coordinates of other tasks set to zero. That is
exact for any mix of tasks among rows or tokens, and costs T times LoRA's products.

Shape legend: D width in, O width out, R rank, T tasks, K = T * R.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.adapters import register_method
from models.adapters.adapted_linear import AdaptedLinear, ParameterGroup, uniform
from models.adapters.routing import TaskRouting
from models.config import AlphaScaledConfig


@dataclass(frozen=True, kw_only=True)
class PerTaskLoRAConfig(AlphaScaledConfig):
    """One LoRA pair per task."""

    method: Literal["per_task_lora"] = "per_task_lora"


class PerTaskLoRALinear(AdaptedLinear):
    """One low-rank pair per task."""

    TASK_DEPENDENT = True
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {"down_TRD": "projections", "up_OTR": "projections"}

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: PerTaskLoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        R, T, D, O = config.rank, num_tasks, base.in_features, base.out_features
        self.down_TRD = nn.Parameter(uniform((T, R, D), 1 / math.sqrt(D), generator))
        self.up_OTR = nn.Parameter(torch.zeros(O, T, R))

    def down_XD(self) -> torch.Tensor:
        return self.down_TRD.flatten(0, 1)

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        return mask_other_tasks(u, self.config.rank, self.routing)

    def up_OK(self) -> torch.Tensor:
        return self.up_OTR.flatten(1)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: PerTaskLoRAConfig) -> int:
        """Return T r (D + O)."""
        return num_tasks * config.rank * (width_in + width_out)

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.down_TRD[task_index], self.up_OTR[:, task_index] * self.scale


def mask_other_tasks(u: torch.Tensor, rank: int, routing: TaskRouting) -> torch.Tensor:
    """Return `u` (.., T * R) with the coordinates of all but each row's own task set to zero."""
    routing.check_rows(u)
    num_tasks = u.shape[-1] // rank
    own = routing.task_one_hot(num_tasks, u.dtype)
    own = own.view(*own.shape[:-2], *[1] * (u.dim() + 1 - own.dim()), num_tasks, 1)
    return (u.unflatten(-1, (num_tasks, rank)) * own).flatten(-2)


register_method(PerTaskLoRAConfig, PerTaskLoRALinear)
