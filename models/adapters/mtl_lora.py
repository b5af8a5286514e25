"""MTL-LoRA (Yang et al., AAAI 2025, doi 10.1609/aaai.v39i20.35509):  y = W x + s [sum_i softmax(w_t/tau)_i B_i] Lambda_t A x

Shape legend: B rows, S tokens, D width in, O width out, R rank, N up-projections, T tasks, K = N * R.

The batch may mix tasks. Mixing the up-projections themselves would build one (O, R) matrix a row; instead a task's transform and its
shares make one (K, R) matrix, each row's point in rank space goes through its task's matrix, and all up-projections are applied in one
dense product. Two dense products a layer whatever the number of tasks, no sorting, no loop; only (K, R) is gathered per row. Where a row's tokens are
of several tasks, a token's R numbers are put in its task's place among T * R, and one more dense product does what the matrices would.
"""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.adapters.adapted_linear import AdaptedLinear, ParameterGroup, uniform
from models.adapters.routing import TaskRouting
from models.config import MTLLoRAConfig


class MTLLoRALinear(AdaptedLinear):
    """A frozen linear with an MTL-LoRA adapter beside it. Identity at the start: the up-projections are zero.

    The mixture logits start random, because equal ones would give all up-projections equal gradients for ever.
    """

    TASK_DEPENDENT = True
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_RD": "projections", "transform": "transforms", "up_ONR": "projections", "mix_TN": "mixtures",
    }  # fmt: skip

    def __init__(self, base: nn.Linear, num_tasks: int, config: MTLLoRAConfig, routing: TaskRouting, generator: torch.Generator) -> None:
        super().__init__(base, config, routing)
        R, N, T, D, O = config.rank, config.num_up_projections, num_tasks, base.in_features, base.out_features  # noqa: E741
        self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
        identity = torch.eye(R) if config.transform == "full" else torch.ones(R)
        self.transform = nn.Parameter(identity.repeat(T, *[1] * identity.dim()))  # (T, R, R) or (T, R)
        self.up_ONR = nn.Parameter(torch.zeros(O, N, R))  # in this order the dense product reads it without a copy
        self.mix_TN = nn.Parameter(uniform((T, N), 1 / math.sqrt(N), generator))

    def down_XD(self) -> torch.Tensor:
        return self.down_RD

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        if self.transform.dim() == 2:
            spread_TNR = self.shares_TN().unsqueeze(2) * self.transform.unsqueeze(1)
            spread = self.routing.gather_like(spread_TNR.flatten(1), u)
            return (u.unsqueeze(-2) * spread.unflatten(-1, spread_TNR.shape[1:])).flatten(-2)
        spread_TNRR = self.shares_TN()[:, :, None, None] * self.transform.unsqueeze(1)
        between = u.dim() - 1 - self.routing.current().dim()  # dimensions of u after those of the ids, its width left out
        if between == 0 and len(spread_TNRR) <= spread_TNRR.shape[1] * spread_TNRR.shape[2]:  # T <= K: fewer numbers than a matrix for each token
            spread_KTR = spread_TNRR.flatten(1, 2).transpose(0, 1).flatten(1).to(u.dtype)
            return functional.linear((u.unsqueeze(-2) * self.routing.own_task(u, len(spread_TNRR))).flatten(-2), spread_KTR)
        spread_KR = self.routing.gather(spread_TNRR.flatten(1), u).to(u.dtype).unflatten(-1, (-1, u.shape[-1]))
        if between == 0:
            return torch.matmul(spread_KR, u.unsqueeze(-1)).squeeze(-1)
        spread_KR = spread_KR.view(*spread_KR.shape[:-2], *[1] * (between - 1), *spread_KR.shape[-2:])
        return torch.matmul(u, spread_KR.transpose(-1, -2))

    def up_OK(self) -> torch.Tensor:
        return self.up_ONR.flatten(1)

    def shares_TN(self) -> torch.Tensor:
        """Each task's shares of the up-projections; rows sum to 1. torch's softmax subtracts the maximum, so no logit overflows."""
        return torch.softmax(self.mix_TN / self.config.mixture_temperature, dim=-1)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: MTLLoRAConfig) -> int:
        """r D + n O r + T r^2 (full) or T r (diagonal) + T n"""
        r, n = config.rank, config.num_up_projections
        transform = num_tasks * (r * r if config.transform == "full" else r)
        return r * width_in + n * width_out * r + transform + num_tasks * n

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rank R, not K: Lambda_t goes into the down-projection, the mixture into the up-projection."""
        transform = self.transform[task_index]
        down_RD = transform @ self.down_RD if transform.dim() == 2 else transform[:, None] * self.down_RD
        up_OR = torch.einsum("n,onr->or", self.shares_TN()[task_index], self.up_ONR)
        return down_RD, up_OR * self.scale
