"""MOELoRA (Liu et al., SIGIR 2024, arXiv 2310.18339).

    y = W x + s sum_e softmax(G v_t)_e B_e A_e x        each expert has rank r / E

The gate depends on the task alone, so it scales coordinates in the low-rank space, and all experts are one
dense product. The published code embeds one task more than there are; that untrained row is left out here.

Shape legend: D width in, O width out, R rank of all experts together, E experts, V width of a task embedding,
T tasks.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.adapters import register_method
from models.adapters.adapted_linear import AdaptedLinear, ParameterGroup, uniform
from models.adapters.routing import TaskRouting
from models.config import AlphaScaledConfig, check_ranges


@dataclass(frozen=True, kw_only=True)
class MoELoRAConfig(AlphaScaledConfig):
    """MOELoRA (Liu et al., SIGIR 2024): experts of rank / num_experts, weighted by a gate on the task."""

    method: Literal["moe_lora"] = "moe_lora"
    num_experts: int = 4  # E: number of experts; divides the rank
    task_embedding_width: int = 64  # width of the task embedding that the gate reads

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, at_least_one=("num_experts", "task_embedding_width"))
        if self.rank % self.num_experts:
            raise ValueError(
                f"adapter.num_experts, {self.num_experts}, must divide adapter.rank, {self.rank}: the "
                "experts share it evenly"
            )


class MoELoRALinear(AdaptedLinear):
    """Experts that all tasks share, with weights per task."""

    TASK_DEPENDENT = True
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_RD": "projections",
        "up_OR": "projections",
        "task_TV": "mixtures",
        "gate_EV": "mixtures",
    }

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: MoELoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        R, E, V, D, O = (
            config.rank,
            config.num_experts,
            config.task_embedding_width,
            base.in_features,
            base.out_features,
        )
        self.down_RD = nn.Parameter(torch.randn(R, D, generator=generator) * 0.01)
        self.up_OR = nn.Parameter(torch.zeros(O, R))
        self.task_TV = nn.Parameter(torch.randn(num_tasks, V, generator=generator))
        self.gate_EV = nn.Parameter(uniform((E, V), V**-0.5, generator))

    def down_XD(self) -> torch.Tensor:
        return self.down_RD

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        return u * self.routing.gather_like(self.weights_TR(), u)

    def up_OK(self) -> torch.Tensor:
        return self.up_OR

    def weights_TR(self) -> torch.Tensor:
        """Return each task's weight of the expert that a coordinate belongs to (T, R)."""
        weights_TE = torch.softmax(functional.linear(self.task_TV, self.gate_EV), dim=-1)
        return weights_TE.repeat_interleave(self.config.rank // self.config.num_experts, dim=-1)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: MoELoRAConfig) -> int:
        """Return r (D + O) + T v + v E."""
        return (
            config.rank * (width_in + width_out)
            + (num_tasks + config.num_experts) * config.task_embedding_width
        )

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pair of rank R: the gate's weights go into the up-projections."""
        return self.down_RD, self.up_OR * self.weights_TR()[task_index] * self.scale


register_method(MoELoRAConfig, MoELoRALinear)
