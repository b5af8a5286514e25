"""MTLoRA (Agiza et al., CVPR 2024, arXiv 2403.20320): a shared pair B A, and a pair B_t A_t per task.

    matrix    y_t = W x + s_t B_t A_t x
    matrixv2  y_t = W x + s B A x + s_t B_t A_t x

Here each row belongs to one task, and W is applied to that row's states. models/vision/mtlora_stream.py has
the paper's layer for vision transformers: a shared stream and T task streams, where W is applied to the
shared one alone.

Shape legend: D width in, O width out, R shared rank, Q rank of a task's own pair, T tasks.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.adapters import register_method
from models.adapters.adapted_linear import AdaptedLinear, ParameterGroup, uniform
from models.adapters.lora import LoRAConfig
from models.adapters.per_task_lora import mask_other_tasks
from models.adapters.routing import TaskRouting
from models.config import AdapterConfig, check_ranges, common_settings, is_task_layer


@dataclass(frozen=True, kw_only=True)
class MTLoRAConfig(AdapterConfig):
    """MTLoRA (Agiza et al., CVPR 2024): a shared low-rank pair and, in the last layers, a pair per task.

    As in the paper's code, the two scaling factors are not divided by a rank.
    """

    method: Literal["mtlora"] = "mtlora"
    task_rank: int = 4  # r_t: rank of a task's own pair
    shared_scale: float = 4.0  # scaling factor of the shared pair
    task_scale: float = 4.0  # scaling factor of a task's own pair
    # whether a task uses its own pair alone (matrix) or the shared pair too (matrixv2)
    mode: Literal["matrix", "matrixv2"] = "matrixv2"
    task_layers: int = 1  # number of layers, from the last, with pairs per task

    @property
    def scale(self) -> float:
        return self.shared_scale

    def for_layer(self, index: int | None, num_layers: int) -> AdapterConfig:
        if is_task_layer(self.task_layers, index, num_layers):
            return self
        return LoRAConfig(**common_settings(self), lora_alpha=self.shared_scale * self.rank)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self, at_least_one=("task_rank", "task_layers"), above_zero=("shared_scale", "task_scale")
        )


class MTLoRALinear(AdaptedLinear):
    """A pair per task and, in mode `matrixv2`, a shared pair."""

    TASK_DEPENDENT = True
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_RD": "projections",
        "up_OR": "projections",
        "down_TQD": "projections",
        "up_OTQ": "projections",
    }

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: MTLoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        R, Q, T, D, O = config.rank, config.task_rank, num_tasks, base.in_features, base.out_features
        if config.mode == "matrixv2":
            self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
            self.up_OR = nn.Parameter(torch.zeros(O, R))
        self.down_TQD = nn.Parameter(uniform((T, Q, D), 1 / math.sqrt(D), generator))
        self.up_OTQ = nn.Parameter(torch.zeros(O, T, Q))

    def down_XD(self) -> torch.Tensor:
        own_XD = self.down_TQD.flatten(0, 1)
        return own_XD if self.config.mode == "matrix" else torch.cat([self.down_RD, own_XD])

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        ratio = self.config.task_scale / self.scale  # forward multiplies everything by the shared scale
        if self.config.mode == "matrix":
            return mask_other_tasks(u, self.config.task_rank, self.routing) * ratio
        shared, own = u[..., : self.config.rank], u[..., self.config.rank :]
        return torch.cat([shared, mask_other_tasks(own, self.config.task_rank, self.routing) * ratio], dim=-1)

    def up_OK(self) -> torch.Tensor:
        own_OK = self.up_OTQ.flatten(1)
        return own_OK if self.config.mode == "matrix" else torch.cat([self.up_OR, own_OK], dim=1)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: MTLoRAConfig) -> int:
        """Return T r_t (D + O), plus r (D + O) in mode matrixv2."""
        shared_rank = config.rank if config.mode == "matrixv2" else 0
        return (shared_rank + num_tasks * config.task_rank) * (width_in + width_out)

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pair of rank r_t, or r + r_t with the shared pair."""
        down_QD, up_OQ = self.down_TQD[task_index], self.up_OTQ[:, task_index] * self.config.task_scale
        if self.config.mode == "matrix":
            return down_QD, up_OQ
        return torch.cat([self.down_RD, down_QD]), torch.cat([self.up_OR * self.scale, up_OQ], dim=1)


register_method(MTLoRAConfig, MTLoRALinear)
