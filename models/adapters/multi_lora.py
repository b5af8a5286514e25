"""MultiLoRA (Wang et al., 2023, arXiv 2311.11501).

    y = W x + s sum_i diag(c_i) B_i A_i x

Shape legend: D width in, O width out, R rank, N pairs, K = N * R.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.adapters import register_method
from models.adapters.adapted_linear import AdaptedLinear, ParameterGroup, uniform
from models.adapters.routing import TaskRouting
from models.config import AlphaScaledConfig, check_ranges


@dataclass(frozen=True, kw_only=True)
class MultiLoRAConfig(AlphaScaledConfig):
    """MultiLoRA (Wang et al., 2023): parallel LoRA pairs, each output scaled by a learned vector."""

    method: Literal["multi_lora"] = "multi_lora"
    num_pairs: int = 3  # n: number of pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, at_least_one=("num_pairs",))


class MultiLoRALinear(AdaptedLinear):
    """Several low-rank pairs for all tasks.

    The projections start random and the output scales at zero, so that the pairs start different.
    """

    TASK_DEPENDENT = False
    CASTS_PROJECTIONS = False  # the scales are applied before the cast
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_NRD": "projections",
        "up_ONR": "projections",
        "gain_ON": "transforms",
    }

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: MultiLoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        R, N, D, O = config.rank, config.num_pairs, base.in_features, base.out_features
        self.down_NRD = nn.Parameter(uniform((N, R, D), 1 / math.sqrt(D), generator))
        self.up_ONR = nn.Parameter(uniform((O, N, R), 1 / math.sqrt(R), generator))
        self.gain_ON = nn.Parameter(torch.zeros(O, N))

    def down_XD(self) -> torch.Tensor:
        return self.down_NRD.flatten(0, 1)

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        return u

    def up_OK(self) -> torch.Tensor:
        return (self.gain_ON.unsqueeze(-1) * self.up_ONR).flatten(1)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: MultiLoRAConfig) -> int:
        """Return n (r (D + O) + O)."""
        return config.num_pairs * (config.rank * (width_in + width_out) + width_out)

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pair of rank n * r."""
        return self.down_NRD.flatten(0, 1), self.up_OK() * self.scale


register_method(MultiLoRAConfig, MultiLoRALinear)
