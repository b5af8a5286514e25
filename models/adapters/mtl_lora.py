"""MTL-LoRA (Yang et al., AAAI 2025, doi 10.1609/aaai.v39i20.35509):  y = W x + (alpha/r) [sum_i softmax(w_t/tau)_i B_i] Lambda_t A x

Shape legend: B rows, S tokens, D width in, O width out, R rank, N up-projections, T tasks.

The batch may mix tasks. Mixing the up-projections themselves would build one (O, R) matrix a row; instead each row's point in rank
space is spread over the N up-projections (N*R numbers) and all of them are applied in one dense product. Two dense products a
layer, whatever the number of tasks; the only gathers are of (R, R) and (N,) per row.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from models.config import AdapterConfig


class TaskRouting:
    """The task ids of the rows in flight, shared by a model and all its adapted layers.

    They stay set after the forward pass, so that gradient checkpointing recomputes layers with the ids of the same rows.
    """

    task_B: torch.Tensor | None = None

    def current_task_B(self) -> torch.Tensor:
        """The ids of the rows in flight; RuntimeError outside a forward pass of the model."""
        if self.task_B is None:
            raise RuntimeError("an adapted layer ran outside RelevanceModel.forward, which sets the task of each row; call the model instead")
        return self.task_B


class MTLLoRALinear(nn.Module):
    """A frozen linear with an MTL-LoRA adapter beside it. Identity at the start: the up-projections are zero.

    The mixture logits start random, because equal ones would give all up-projections equal gradients for ever.
    """

    def __init__(self, base: nn.Linear, num_tasks: int, config: AdapterConfig, routing: TaskRouting, generator: torch.Generator) -> None:
        super().__init__()
        R, N, T, D, O = config.rank, config.num_up_projections, num_tasks, base.in_features, base.out_features  # noqa: E741
        self.base = base.requires_grad_(False)
        self.routing = routing
        self.scale = config.lora_alpha / R
        self.mixture_temperature = config.mixture_temperature
        # float32 whatever the base's dtype: near 1 a bfloat16 step is 0.004, so a learning rate of 1e-4 would never move the transform
        self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
        identity = torch.eye(R) if config.transform == "full" else torch.ones(R)
        self.transform = nn.Parameter(identity.repeat(T, *[1] * identity.dim()))  # (T, R, R) or (T, R)
        self.up_NOR = nn.Parameter(torch.zeros(N, O, R))
        self.mix_TN = nn.Parameter(uniform((T, N), 1 / math.sqrt(N), generator))

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, S, O). ValueError: another number of dimensions, which a diagonal transform would silently widen."""
        if x_BSD.dim() != 3:
            shape = tuple(x_BSD.shape)
            raise ValueError(f"an adapted layer takes (rows, tokens, width), not {shape}; leave it out of adapter.target_modules")
        task_B = self.routing.current_task_B()
        u_BSR = functional.linear(x_BSD, self.down_RD.to(x_BSD.dtype))
        v_BSR = self._transformed(u_BSR, task_B)
        share_BN = (self.shares_TN() * self.scale)[task_B].to(x_BSD.dtype)
        z_BSK = (v_BSR.unsqueeze(2) * share_BN[:, None, :, None]).flatten(2)  # K = N * R
        up_OK = self.up_NOR.permute(1, 0, 2).flatten(1)
        return self.base(x_BSD) + functional.linear(z_BSK, up_OK.to(x_BSD.dtype))

    def shares_TN(self) -> torch.Tensor:
        """Each task's shares of the up-projections; rows sum to 1. torch's softmax subtracts the maximum, so no logit overflows."""
        return torch.softmax(self.mix_TN / self.mixture_temperature, dim=-1)

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain LoRA pair this layer is for one task: down (R, D) and up (O, R), the scale inside up. Lossless, rank R."""
        transform = self.transform[task_index]
        down_RD = transform @ self.down_RD if transform.dim() == 2 else transform[:, None] * self.down_RD
        up_OR = torch.einsum("n,nor->or", self.shares_TN()[task_index], self.up_NOR)
        return down_RD, up_OR * self.scale

    def _transformed(self, u_BSR: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        transform_B = self.transform.to(u_BSR.dtype)[task_B]
        if transform_B.dim() == 3:
            return torch.bmm(u_BSR, transform_B.transpose(1, 2))
        return u_BSR * transform_B[:, None, :]


def parameter_count(width_in: int, width_out: int, num_tasks: int, config: AdapterConfig) -> int:
    """Trainable numbers of one adapted linear: rD + nOr + Tr^2 (full) or Tr (diagonal) + Tn."""
    r, n = config.rank, config.num_up_projections
    transform = num_tasks * (r * r if config.transform == "full" else r)
    return r * width_in + n * width_out * r + transform + num_tasks * n


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """Uniform in [-bound, bound): what kaiming_uniform(a=sqrt(5)) draws for a fan-in of 1/bound^2."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
