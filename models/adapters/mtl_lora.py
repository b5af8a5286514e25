"""MTL-LoRA (Yang et al., AAAI 2025, doi 10.1609/aaai.v39i20.35509).

    y = W x + s [sum_i softmax(w_t / tau)_i B_i] Lambda_t A x

The batch may mix tasks. Mixing the up-projections directly would build an (O, R) matrix per row. Instead, a
task's transform and mixture weights form one (K, R) task matrix. Each row's low-rank states go through its
task's matrix, and one dense product applies all up-projections. A layer costs two dense products for any
number of tasks, without sorting or loops.

Where the tokens of a row belong to several tasks, a token's R numbers are put at its task's place among
T * R, and one more dense product replaces the matrices per row.

Shape legend: L layers, D width in, O width out, R rank, N up-projections, T tasks, K = N * R. `..` stands for
the dimensions of the task ids: rows, or rows and tokens.
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
from models.config import AdapterConfig, AlphaScaledConfig, check_ranges, common_settings, is_task_layer


@dataclass(frozen=True, kw_only=True)
class MTLLoRAConfig(AlphaScaledConfig):
    """MTL-LoRA (Yang et al., AAAI 2025): shared projections, a transform and a mixture of them per task."""

    method: Literal["mtl_lora"] = "mtl_lora"
    num_up_projections: int = 3  # n: number of up-projections, mixed per task
    mixture_temperature: float = 0.5  # tau: softmax temperature; below 1 sharpens a task's mixture
    # shape of a task's transform: rank x rank, or one scale per rank
    transform: Literal["full", "diagonal"] = "full"
    # number of layers, from the last, that depend on the task; plain LoRA below; all by default
    task_layers: int | None = None

    def for_layer(self, index: int | None, num_layers: int) -> AdapterConfig:
        if is_task_layer(self.task_layers, index, num_layers):
            return self
        return LoRAConfig(**common_settings(self), lora_alpha=self.lora_alpha, use_rslora=self.use_rslora)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self, at_least_one=("num_up_projections", "task_layers"), above_zero=("mixture_temperature",)
        )


class TokenMatrices(NamedTuple):
    """Task matrices of a layer in a pass with task ids of tokens, for one dense product."""

    one_hot: torch.Tensor  # (.., T, 1), of `TaskRouting.task_one_hot`
    matrix_KTR: torch.Tensor  # (K, T * R)


class TaskMatrices(NamedTuple):
    """Task matrices of a layer in a pass with task ids of tokens, where each token gathers its own.

    They are gathered layer by layer: those of all tokens and layers at once would not fit in memory.
    """

    matrix: torch.Tensor  # (T, R, K) or (T, N, R)


class MTLLoRALinear(AdaptedLinear):
    """An MTL-LoRA adapter. Its initial output is the base's, because the up-projections are zero.

    The mixture logits start random: equal logits would always give all up-projections equal gradients.
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
        self.product_scale = 1.0  # the scale is part of the task matrices
        R, N, T, D, O = config.rank, config.num_up_projections, num_tasks, base.in_features, base.out_features
        self.down_RD = nn.Parameter(uniform((R, D), 1 / math.sqrt(D), generator))
        identity = torch.eye(R) if config.transform == "full" else torch.ones(R)
        self.transform = nn.Parameter(identity.repeat(T, *[1] * identity.dim()))  # (T, R, R) or (T, R)
        # in this order the dense product needs no copy
        self.up_ONR = nn.Parameter(torch.zeros(O, N, R))
        self.mix_TN = nn.Parameter(uniform((T, N), 1 / math.sqrt(N), generator))

    def down_XD(self) -> torch.Tensor:
        return self.down_RD

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        self.routing.check_rows(u)
        matrix = self.prepared
        if matrix is None:
            matrix = build_task_matrices([self], self.routing)[0]
        if isinstance(matrix, TokenMatrices):
            u_at_task = (u.unsqueeze(-2) * matrix.one_hot.to(u.dtype)).flatten(-2)  # (.., T * R)
            return functional.linear(u_at_task, matrix.matrix_KTR.to(u.dtype))
        if isinstance(matrix, TaskMatrices):
            matrix = self.routing.gather(matrix.matrix.flatten(1)).unflatten(-1, matrix.matrix.shape[1:])
        return self._multiply(u, matrix.to(u.dtype))

    def _multiply(self, u: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Multiply `u` by the matrices (.., R, K), or by the scales (.., N, R), of the rows' tasks."""
        between = u.dim() - 1 - self.routing.current_tasks().dim()  # dimensions after those of the ids
        leading, trailing = matrix.shape[:-2], matrix.shape[-2:]
        if self.transform.dim() == 2:
            return (u.unsqueeze(-2) * matrix.view(*leading, *[1] * between, *trailing)).flatten(-2)
        if between == 0:
            return torch.matmul(u.unsqueeze(-2), matrix).squeeze(-2)
        if u.dim() == 3:  # the usual case: one operation where matmul would need several
            return torch.bmm(u, matrix)
        return torch.matmul(u, matrix.view(*leading, *[1] * (between - 1), *trailing))

    @classmethod
    def prepare(cls, layers: Sequence[Any], routing: TaskRouting) -> list[tuple[Any, Any]]:
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for layer in layers:
            shapes = (layer.mix_TN.shape, layer.transform.shape, layer.dtype)
            factors = (layer.scale, layer.config.mixture_temperature)
            groups.setdefault((*shapes, *factors), []).append(layer)
        return [
            pair
            for group in groups.values()
            for pair in zip(group, build_task_matrices(group, routing), strict=True)
        ]

    def up_OK(self) -> torch.Tensor:
        return self.up_ONR.flatten(1)

    def mixture_weights_TN(self) -> torch.Tensor:
        """Return each task's weights of the up-projections (T, N); rows sum to 1."""
        return _mixture_weights(self.mix_TN, self.config)

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: MTLLoRAConfig) -> int:
        """Return r D + n O r + T n, plus T r^2 (full) or T r (diagonal)."""
        r, n = config.rank, config.num_up_projections
        transform = num_tasks * (r * r if config.transform == "full" else r)
        return r * width_in + n * width_out * r + transform + num_tasks * n

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pair of rank R: Lambda_t goes into the down-, the mixture into the up-projection."""
        transform = self.transform[task_index]
        down_RD = transform @ self.down_RD if transform.dim() == 2 else transform[:, None] * self.down_RD
        up_OR = torch.einsum("n,onr->or", self.mixture_weights_TN()[task_index], self.up_ONR)
        return down_RD, up_OR * self.scale


def build_task_matrices(layers: Sequence[MTLLoRALinear], routing: TaskRouting) -> list[Any]:
    """Build the task matrices of L layers of one shape, which `low_rank` needs for the active task ids.

    For ids of rows: the (R, K) matrix of each row's task, or its (N, R) scales where transforms are diagonal.
    For ids of tokens: `TokenMatrices` or `TaskMatrices`.

    One call serves all layers, because launching these small operations layer by layer would take longer than
    running them. The result stays in memory for the pass: L K R numbers per row in float32 and again in the
    trunk's dtype: 6 MB for 64 rows of SmolLM2 at rank 8, and 3 GB for 256 rows of 224 linears at rank 64.
    """
    task, dtype = routing.current_tasks(), layers[0].dtype
    logits_LTN = torch.stack([layer.mix_TN for layer in layers])
    weight_LTN = _mixture_weights(logits_LTN, layers[0].config) * layers[0].scale
    transform = torch.stack([layer.transform for layer in layers])  # (L, T, R, R) or (L, T, R)
    num_tasks = weight_LTN.shape[1]
    if transform.dim() == 3:
        matrix = weight_LTN.unsqueeze(-1) * transform.unsqueeze(2)  # (L, T, N, R)
    else:
        matrix_LTKR = (weight_LTN[..., None, None] * transform.unsqueeze(2)).flatten(2, 3)
        # T <= K: T * R numbers per token are fewer than a (R, K) matrix
        if task.dim() > 1 and num_tasks <= matrix_LTKR.shape[2]:
            one_hot = routing.task_one_hot(num_tasks, dtype)
            matrix_LKTR = matrix_LTKR.transpose(1, 2).flatten(2).to(dtype)
            return [TokenMatrices(one_hot, matrix_KTR) for matrix_KTR in matrix_LKTR.unbind(0)]
        matrix = matrix_LTKR.transpose(2, 3)
    if task.dim() > 1:
        return [TaskMatrices(layer_matrix) for layer_matrix in matrix.unbind(0)]
    # gathered before the cast: gradients are summed in this dtype, and in bfloat16 sums stop growing at 256
    rows = routing.gather(matrix.transpose(0, 1).flatten(1)).to(dtype)
    return list(rows.unflatten(-1, (len(layers), *matrix.shape[2:])).unbind(1))


def _mixture_weights(mix_TN: torch.Tensor, config: MTLLoRAConfig) -> torch.Tensor:
    """Return the softmax of mixture logits (.., T, N) at the config's temperature."""
    return torch.softmax(mix_TN / config.mixture_temperature, dim=-1)


register_method(MTLLoRAConfig, MTLLoRALinear)
