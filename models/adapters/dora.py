"""DoRA (Liu et al., ICML 2024, arXiv 2402.09353).

    y = diag(m / ||W + s B A||) (W + s B A) x + b        the norm is over each output's weights

As in section 4.3 of the paper, the norm is a constant in the backward pass. It is computed without an (O, D)
matrix: ||W + s B A||^2 = ||W||^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B, row by row.

Shape legend: D width in, O width out, R rank.
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
    """DoRA (Liu et al., ICML 2024): LoRA on the direction of each output's weights, and a learned length."""

    method: Literal["dora"] = "dora"


MIN_SQUARED_NORM = 1e-30  # avoids 0 / 0 for pruned outputs, whose weights are zero


class DoRALinear(AdaptedLinear):
    """LoRA on directions and a magnitude for each output, independent of the task."""

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
        weight_OD = self.base.weight.detach()
        squared_norm_O = weight_OD.to(torch.promote_types(weight_OD.dtype, torch.float32)).square().sum(dim=1)
        self.register_buffer("squared_norm_O", squared_norm_O, persistent=False)
        self.magnitude_O = nn.Parameter(squared_norm_O.sqrt().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain_O = self.magnitude_O / self.norm_O()
        base = self.base(x)
        dropped = self.dropout(x)
        product = base if dropped is x else self.base(dropped)
        if self.base.bias is not None:
            product = product - self.base.bias
        z = functional.linear(dropped, self.down_RD.to(x.dtype))
        # (gain - 1) keeps the initial output equal to the base's, bit for bit, and small changes in bfloat16
        return (
            base
            + (gain_O - 1).to(x.dtype) * product
            + functional.linear(z, (gain_O[:, None] * self.scale * self.up_OR).to(x.dtype))
        )

    @torch.no_grad()
    def norm_O(self) -> torch.Tensor:
        """Return the norm of each output's weights in W + s B A (O,)."""
        up_OR, down_RD = self.up_OR, self.down_RD
        with torch.autocast(up_OR.device.type, enabled=False):
            # a call and not a product with W, which may be partitioned over ranks
            image_RO = self.base(down_RD.to(self.dtype))
            if self.base.bias is not None:
                image_RO = image_RO - self.base.bias
            cross_O = (image_RO.to(up_OR.dtype).t() * up_OR).sum(dim=1)
            own_O = ((up_OR @ (down_RD @ down_RD.t())) * up_OR).sum(dim=1)
            squared_O = self.squared_norm_O + 2 * self.scale * cross_O + self.scale**2 * own_O
            return squared_O.clamp_min(MIN_SQUARED_NORM).sqrt()

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: DoRAConfig) -> int:
        """Return r (D + O) + O."""
        return config.rank * (width_in + width_out) + width_out

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotMergeableError(
            "dora rescales the base's weights, which no low-rank pair can; merge the weights instead"
        )

    def merged_weight(self, task_index: int) -> torch.Tensor:
        weight_OD = self.base.weight
        wide = torch.promote_types(weight_OD.dtype, torch.float32)
        direction_OD = torch.addmm(
            weight_OD.to(wide), self.up_OR.to(wide), self.down_RD.to(wide), alpha=self.scale
        )
        norm_O = direction_OD.norm(dim=1).clamp_min(MIN_SQUARED_NORM**0.5)
        return (self.magnitude_O.to(wide) / norm_O)[:, None] * direction_OD


register_method(DoRAConfig, DoRALinear)
