"""DoRA (Liu et al., ICML 2024, arXiv 2402.09353).

    y = diag(m / ||W + s B A||) (W + s B A) x + b        the norm is over each output's weights

Shape legend: D width in, O width out, R rank.

As in section 4.3 of the paper the norm counts as a constant in the backward pass. It is never computed from
an (O, D) sum: ||W + s B A||^2 = ||W||^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B, row by row.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.adapters import register_method
from models.adapters.adapted_linear import AdaptedLinear, NotMergeableError, ParameterGroup, uniform
from models.adapters.routing import TaskRouting
from models.config import AlphaScaledConfig


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(AlphaScaledConfig):
    """DoRA (Liu et al., ICML 2024): LoRA turns the direction of each output's weights, a learned magnitude
    sets their length.
    """

    method: Literal["dora"] = "dora"


TINY = 1e-30  # least squared length of an output's weights: pruned outputs have none, and 0 / 0 is no number


class DoRALinear(AdaptedLinear):
    """LoRA on directions, and a magnitude for each output; the task plays no part."""

    TASK_DEPENDENT = False
    CASTS_PROJECTIONS = False
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_RD": "projections",
        "up_OR": "projections",
        "magnitude_O": "transforms",
    }
    squared_norm_O: torch.Tensor

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: DoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        self.down_RD = nn.Parameter(
            uniform((config.rank, base.in_features), 1 / math.sqrt(base.in_features), generator)
        )
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, config.rank))
        weight_OD = base.weight.detach()
        squared_norm_O = weight_OD.to(torch.promote_types(weight_OD.dtype, torch.float32)).square().sum(dim=1)
        self.register_buffer("squared_norm_O", squared_norm_O, persistent=False)
        self.magnitude_O = nn.Parameter(squared_norm_O.sqrt().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain_O = self.magnitude_O / self.norm_O()
        base = self.base(x)
        dropped = self.dropout(x)
        plain = base if dropped is x else self.base(dropped)
        turned = plain if self.base.bias is None else plain - self.base.bias
        z = functional.linear(dropped, self.down_RD.to(x.dtype))
        # the base's own term as a change from 1: the start is the base's output bit for bit, and bfloat16
        # does not swallow small changes
        return (
            base
            + (gain_O - 1).to(x.dtype) * turned
            + functional.linear(z, (gain_O[:, None] * self.scale * self.up_OR).to(x.dtype))
        )

    @torch.no_grad()
    def norm_O(self) -> torch.Tensor:
        """Length of each output's weights in W + s B A."""
        up_OR, down_RD = self.up_OR, self.down_RD
        with torch.autocast(up_OR.device.type, enabled=False):
            # through the base itself: W may lie on other ranks
            image_RO = self.base(down_RD.to(self.base.weight.dtype))
            if self.base.bias is not None:
                image_RO = image_RO - self.base.bias
            cross_O = (image_RO.to(up_OR.dtype).t() * up_OR).sum(dim=1)
            own_O = ((up_OR @ (down_RD @ down_RD.t())) * up_OR).sum(dim=1)
            squared_O = self.squared_norm_O + 2 * self.scale * cross_O + self.scale**2 * own_O
            return squared_O.clamp_min(TINY).sqrt()

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: DoRAConfig) -> int:
        """r (D + O) + O"""
        return config.rank * (width_in + width_out) + width_out

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotMergeableError(
            "dora scales the base's own weights, which no low-rank pair can; merge the weights instead"
        )

    def merged_weight(self, task_index: int) -> torch.Tensor:
        weight_OD = self.base.weight
        wide = torch.promote_types(weight_OD.dtype, torch.float32)
        turned_OD = torch.addmm(
            weight_OD.to(wide), self.up_OR.to(wide), self.down_RD.to(wide), alpha=self.scale
        )
        return (self.magnitude_O.to(wide) / turned_OD.norm(dim=1).clamp_min(TINY**0.5))[:, None] * turned_OD


register_method(DoRAConfig, DoRALinear)
