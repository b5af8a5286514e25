"""HydraLoRA (Tian et al., NeurIPS 2024, arXiv 2404.19245).

    y = W x + s sum_i softmax(G x)_i B_i A x

Shape legend: D width in, O width out, R rank, N up-projections.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.adapters import register_method
from models.adapters.adapted_linear import (
    AdaptedLinear,
    NotMergeableError,
    ParameterGroup,
    add_product,
    uniform,
)
from models.adapters.routing import TaskRouting
from models.config import AlphaScaledConfig, check_ranges


@dataclass(frozen=True, kw_only=True)
class HydraLoRAConfig(AlphaScaledConfig):
    """HydraLoRA (Tian et al., NeurIPS 2024): a router mixes up-projections for each token."""

    method: Literal["hydra_lora"] = "hydra_lora"
    num_up_projections: int = 3  # n: number of up-projections

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, at_least_one=("num_up_projections",))


class HydraLoRALinear(AdaptedLinear):
    """Up-projections that a router mixes for each token, independent of the task."""

    TASK_DEPENDENT = False
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_RD": "projections",
        "up_ONR": "projections",
        "router_ND": "mixtures",
    }

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: HydraLoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        R, N, D, O = config.rank, config.num_up_projections, base.in_features, base.out_features
        self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
        self.up_ONR = nn.Parameter(torch.zeros(O, N, R))
        self.router_ND = nn.Parameter(uniform((N, D), 1 / math.sqrt(D), generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # dropout applies to the adapter's inputs, not to the router's
        logits = functional.linear(x, self.router_ND.to(x.dtype))
        u = functional.linear(self.dropout(x), self.down_RD.to(x.dtype))
        # in bfloat16 a softmax need not sum to 1
        share = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1).to(u.dtype)
        z = (share.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2)
        return add_product(self.base(x), z, self.up_ONR.flatten(1), self.scale)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: HydraLoRAConfig) -> int:
        """Return r D + n r O + n D."""
        n = config.num_up_projections
        return config.rank * width_in + n * config.rank * width_out + n * width_in

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotMergeableError(
            "hydra_lora mixes its up-projections for each token, so no weight stands for a task; use the "
            "model with its adapters"
        )


register_method(HydraLoRAConfig, HydraLoRALinear)
