"""MTL-LoRA (Yang et al., AAAI 2025, doi 10.1609/aaai.v39i20.35509).

    y = W x + s [sum_i softmax(w_t / tau)_i B_i] Lambda_t A x

Shape legend: L layers, B rows, S tokens, D width in, O width out, R rank, N up-projections, T tasks, K = N R.

The batch may mix tasks. Mixing the up-projections themselves would build one (O, R) matrix a row; instead a
task's transform and its shares make one (K, R) matrix, each row's point in rank space goes through its task's
matrix, and all up-projections are applied in one dense product. Two dense products a layer whatever the
number of tasks, no sorting, no loop; only (K, R) is gathered per row. Where a row's tokens are of several
tasks, a token's R numbers are put in its task's place among T * R, and one more dense product does what the
matrices would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from models.adapters import register_method
from models.adapters.adapted_linear import AdaptedLinear, ParameterGroup, uniform
from models.adapters.lora import LoRAConfig
from models.adapters.routing import TaskRouting
from models.config import AdapterConfig, AlphaScaledConfig, check_numbers, in_task_layers, shared_fields


@dataclass(frozen=True, kw_only=True)
class MTLLoRAConfig(AlphaScaledConfig):
    """MTL-LoRA (Yang et al., AAAI 2025): shared down-projection, one small transform a task, a task's mixture
    of up-projections.
    """

    method: Literal["mtl_lora"] = "mtl_lora"
    num_up_projections: int = 3  # n: up-projections that every task mixes in its own shares
    mixture_temperature: float = 0.5  # tau: below 1 sharpens a task's mixture, above 1 evens it out
    # shape of a task's transform: rank x rank, or a scale for each of the ranks
    transform: Literal["full", "diagonal"] = "full"
    # only the last so many layers know the task, plain LoRA below; all of them if not given
    task_layers: int | None = None

    def at_layer(self, index: int | None, num_layers: int) -> AdapterConfig:
        if in_task_layers(self.task_layers, index, num_layers):
            return self
        return LoRAConfig(**shared_fields(self), lora_alpha=self.lora_alpha, use_rslora=self.use_rslora)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(
            self, at_least_one=("num_up_projections", "task_layers"), above_zero=("mixture_temperature",)
        )


class TokenSpread(NamedTuple):
    """What a layer takes of a pass whose ids are of tokens."""

    own: torch.Tensor  # (.., T, 1), as `TaskRouting.own_task` has it
    spread_KTR: torch.Tensor  # (K, T * R)


class TaskSpread(NamedTuple):
    """What a layer takes where each token takes its task's part by itself: made for all layers at once, these
    parts would not fit.
    """

    spread: torch.Tensor  # (T, R, K) or (T, N, R)


class MTLLoRALinear(AdaptedLinear):
    """A frozen linear with an MTL-LoRA adapter beside it. Identity at the start: the up-projections are zero.

    The mixture logits start random, because equal ones would give all up-projections equal gradients for
    ever.
    """

    TASK_DEPENDENT = True
    GROUPS: ClassVar[dict[str, ParameterGroup]] = {
        "down_RD": "projections",
        "transform": "transforms",
        "up_ONR": "projections",
        "mix_TN": "mixtures",
    }

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        config: MTLLoRAConfig,
        routing: TaskRouting,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, config, routing)
        self.product_scale = 1.0  # the scale is in the shares
        R, N, T, D, O = config.rank, config.num_up_projections, num_tasks, base.in_features, base.out_features
        self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
        identity = torch.eye(R) if config.transform == "full" else torch.ones(R)
        self.transform = nn.Parameter(identity.repeat(T, *[1] * identity.dim()))  # (T, R, R) or (T, R)
        # in this order the dense product reads it without a copy
        self.up_ONR = nn.Parameter(torch.zeros(O, N, R))
        self.mix_TN = nn.Parameter(uniform((T, N), 1 / math.sqrt(N), generator))

    def down_XD(self) -> torch.Tensor:
        return self.down_RD

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        self.routing.check(u)
        spread = self.prepared if self.prepared is not None else spreads([self], self.routing)[0]
        # dimensions of u after those of the ids, its width left out
        between = u.dim() - 1 - self.routing.current().dim()
        if isinstance(spread, TokenSpread):
            return functional.linear(
                (u.unsqueeze(-2) * spread.own.to(u.dtype)).flatten(-2), spread.spread_KTR.to(u.dtype)
            )
        if isinstance(spread, TaskSpread):
            spread = self.routing.gather(spread.spread.flatten(1)).unflatten(-1, spread.spread.shape[1:])
        spread = spread.to(u.dtype)
        if self.transform.dim() == 2:
            return (
                u.unsqueeze(-2) * spread.view(*spread.shape[:-2], *[1] * between, *spread.shape[-2:])
            ).flatten(-2)
        if between == 0:
            return torch.matmul(u.unsqueeze(-2), spread).squeeze(-2)
        if u.dim() == 3:  # the usual case, in one operation where matmul would make several
            return torch.bmm(u, spread)
        return torch.matmul(u, spread.view(*spread.shape[:-2], *[1] * (between - 1), *spread.shape[-2:]))

    @classmethod
    def prepare(cls, layers: Sequence[Any], routing: TaskRouting) -> list[tuple[Any, Any]]:
        alike: dict[tuple[Any, ...], list[Any]] = {}
        for layer in layers:
            factors = (layer.scale, layer.config.mixture_temperature)
            alike.setdefault(
                (layer.mix_TN.shape, layer.transform.shape, layer.base.weight.dtype, *factors), []
            ).append(layer)
        return [pair for group in alike.values() for pair in zip(group, spreads(group, routing), strict=True)]

    def up_OK(self) -> torch.Tensor:
        return self.up_ONR.flatten(1)

    def shares_TN(self) -> torch.Tensor:
        """Each task's shares of the up-projections; rows sum to 1."""
        return shares(self.mix_TN, self.config)

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


def shares(mix_TN: torch.Tensor, config: MTLLoRAConfig) -> torch.Tensor:
    """Mixture logits (.., T, N) as shares. torch's softmax subtracts the maximum, so no logit overflows."""
    return torch.softmax(mix_TN / config.mixture_temperature, dim=-1)


def spreads(layers: Sequence[MTLLoRALinear], routing: TaskRouting) -> list[Any]:
    """What `low_rank` takes of each of L layers of one shape for the ids in flight: the (R, K) matrix of each
    row's task, or its (N, R) scales. Made for all layers at once: layer by layer these small operations take
    a processor longer to launch than a GPU to do. They stay for the pass: B L K R numbers in float32 and once
    more in the trunk's dtype, 6 MB for 64 rows of SmolLM2 at rank 8 and 3 GB for 256 rows of 224 linears at
    rank 64.
    """
    task, dtype = routing.current(), layers[0].base.weight.dtype
    share_LTN = shares(torch.stack([layer.mix_TN for layer in layers]), layers[0].config) * layers[0].scale
    transform = torch.stack([layer.transform for layer in layers])  # (L, T, R, R) or (L, T, R)
    num_tasks = share_LTN.shape[1]
    if transform.dim() == 3:
        spread = share_LTN.unsqueeze(-1) * transform.unsqueeze(2)  # (L, T, N, R)
    else:
        spread_LTKR = (share_LTN[..., None, None] * transform.unsqueeze(2)).flatten(2, 3)
        # T <= K: fewer numbers than a matrix for each token
        if task.dim() > 1 and num_tasks <= spread_LTKR.shape[2]:
            own = routing.own_task(num_tasks, dtype)
            return [
                TokenSpread(own, spread_KTR)
                for spread_KTR in spread_LTKR.transpose(1, 2).flatten(2).to(dtype).unbind(0)
            ]
        spread = spread_LTKR.transpose(2, 3)
    if task.dim() > 1:
        return [TaskSpread(of_layer) for of_layer in spread.unbind(0)]
    # gathered before it is cast: gradients of rows are summed in this dtype, and bfloat16 loses count at 256
    return list(
        routing.gather(spread.transpose(0, 1).flatten(1))
        .to(dtype)
        .unflatten(-1, (len(layers), *spread.shape[2:]))
        .unbind(1)
    )


register_method(MTLLoRAConfig, MTLLoRALinear)
