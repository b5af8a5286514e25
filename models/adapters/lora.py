"""LoRA (Hu et al., ICLR 2022).

    y = W x + s B A x

Shape legend: D width in, O width out, R rank.
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
class LoRAConfig(AlphaScaledConfig):
    """LoRA (Hu et al., ICLR 2022): one low-rank pair for all tasks."""

    method: Literal["lora"] = "lora"


class LoRALinear(AdaptedLinear):
    """One low-rank pair for all tasks."""

    TASK_DEPENDENT = False
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {"down_RD": "projections", "up_OR": "projections"}

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: LoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        self.down_RD = nn.Parameter(
            uniform((config.rank, base.in_features), 1 / math.sqrt(base.in_features), generator)
        )
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, config.rank))

    def down_XD(self) -> torch.Tensor:
        return self.down_RD

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        return u

    def up_OK(self) -> torch.Tensor:
        return self.up_OR

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: LoRAConfig) -> int:
        """Return r (D + O)."""
        return config.rank * (width_in + width_out)

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.down_RD, self.up_OR * self.scale


register_method(LoRAConfig, LoRALinear)
