"""MTLoRA's layer (Agiza et al., CVPR 2024, arXiv 2403.20320) with one shared stream and T task streams.

Shape legend: D width in, O width out, R shared rank, Q rank of a task's own pair, T tasks, X all rows and
tokens. `..` stands for rows and tokens.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from models.adapters.adapted_linear import add_product, uniform
from models.adapters.mtlora import MTLoRAConfig


class MTLoRAStreamLinear(nn.Module):
    """A frozen linear with a shared pair and a pair per task; without tasks it has the shared pair alone."""

    def __init__(
        self, base: nn.Linear, num_tasks: int, config: MTLoRAConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        R, Q, T, D, O = config.rank, config.task_rank, num_tasks, base.in_features, base.out_features
        self.base = base.requires_grad_(False)
        self.config = config
        self.num_tasks = num_tasks
        self.dropout = nn.Dropout(config.lora_dropout)
        self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
        self.up_OR = nn.Parameter(torch.zeros(O, R))
        if num_tasks:
            self.down_TQD = nn.Parameter(uniform((T, Q, D), 1 / math.sqrt(D), generator))
            self.up_TOQ = nn.Parameter(torch.zeros(T, O, Q))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the shared stream (.., O) alone."""
        return add_product(
            self.base(x),
            functional.linear(self.dropout(x), self.down_RD.to(x.dtype)),
            self.up_OR,
            self.config.shared_scale,
        )

    def streams(
        self, x: torch.Tensor, x_tasks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the shared stream (.., O) and the task streams (T, .., O).

        Args:
            x: Shared stream (.., D).
            x_tasks: Task streams (T, .., D); None where all tasks start from the shared stream.
        """
        frozen, dropped = self.base(x), self.dropout(x)
        shared = add_product(
            frozen, functional.linear(dropped, self.down_RD.to(x.dtype)), self.up_OR, self.config.shared_scale
        )
        start = shared if self.config.mode == "matrixv2" else frozen
        down_TQD, up_TQO = self.down_TQD.to(x.dtype), self.up_TOQ.to(x.dtype).transpose(1, 2)
        if x_tasks is None:
            # one product for all tasks, without copies of the shared stream
            low_XTQ = functional.linear(dropped, down_TQD.flatten(0, 1)).view(-1, *down_TQD.shape[:2])
            low_TXQ = low_XTQ.transpose(0, 1)
        else:
            # the published code has no dropout here, only on a block's first task pair
            low_TXQ = torch.bmm(self.dropout(x_tasks).flatten(1, -2), down_TQD.transpose(1, 2))
        tasks_TXO = torch.baddbmm(
            start.flatten(0, -2).unsqueeze(0), low_TXQ, up_TQO, alpha=self.config.task_scale
        )
        return shared, tasks_TXO.view(self.num_tasks, *start.shape)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: MTLoRAConfig) -> int:
        """Return (r + T r_t) (D + O)."""
        return (config.rank + num_tasks * config.task_rank) * (width_in + width_out)
