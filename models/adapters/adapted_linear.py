"""Base class of all adapter methods: a frozen linear and, beside it, a low-rank product.

Shape legend: N tokens of all rows, D width in, O width out, X width of the low-rank space after the down-
projections, K width before the up-projections. `..` stands for (rows, tokens) or any other leading
dimensions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.adapters.routing import TaskRouting
from models.config import AdapterConfig
from models.quantization import freeze_linear, linear_dtype

ParameterGroup = Literal["projections", "transforms", "mixtures"]


class NotMergeableError(ValueError):
    """The method's output is no linear map of a task's inputs, so it cannot be merged into one weight."""


class AdaptedLinear(nn.Module):
    """A frozen linear with an adapter: y = base(x) + product_scale * up(low_rank(down x)).

    A method implements `down_XD`, `low_rank`, `up_OK`, `parameter_count` and `fold`.

    Parameters are float32 whatever the base's dtype: near 1 the spacing of bfloat16 is 0.004, so a learning
    rate of 1e-4 would never move a transform. Products run in the dtype of the inputs. A base
    that bitsandbytes stored in 4 or 8 bits counts as its dequantised weight.
    """

    TASK_DEPENDENT: ClassVar[bool]  # whether the output depends on the row's task
    GROUPS: ClassVar[dict[str, ParameterGroup]]  # optimizer group of each parameter
    CASTS_PROJECTIONS: ClassVar[bool] = True  # whether projections are cast to the inputs' dtype before use
    prepared: Any = None  # the result of `prepare` for the running pass

    def __init__(self, base: nn.Linear, config: AdapterConfig, routing: TaskRouting) -> None:
        super().__init__()
        self.base = freeze_linear(base)
        self.config: Any = config
        self.routing = routing
        self.scale = self.product_scale = config.scale
        self.dropout = nn.Dropout(config.lora_dropout)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base's products, and so of the inputs."""
        return linear_dtype(self.base)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output (.., O) for inputs (.., D)."""
        # products of matrices: those of more dimensions would be viewed as matrices one by one, and a GPU
        # waits for the launch of each operation
        leading, x_ND = x.shape[:-1], x.reshape(-1, x.shape[-1])
        u = functional.linear(self.dropout(x_ND), self.down_XD().to(x.dtype))
        z = self.low_rank(u.view(*leading, u.shape[-1]))
        y = add_product(self.base(x_ND), z.flatten(0, -2), self.up_OK(), self.product_scale)
        return y.view(*leading, y.shape[-1])

    def down_XD(self) -> torch.Tensor:
        """Return everything that multiplies the inputs as one matrix (X, D)."""
        raise NotImplementedError

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        """Turn the down-projected inputs (.., X) into the inputs of the up-projections (.., K)."""
        raise NotImplementedError

    def up_OK(self) -> torch.Tensor:
        """Return the up-projections as one matrix (O, K)."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, layers: Sequence[Any], routing: TaskRouting) -> list[tuple[Any, Any]]:
        """Compute the values that layers need for the active task ids, for all layers at once.

        Returns:
            Pairs of a layer and the value of its `prepared`; none for methods that prepare nothing.
        """
        return []

    @staticmethod
    def parameter_count(width_in: int, width_out: int, num_tasks: int, config: Any) -> int:
        """Return the number of trainable parameters of one adapted linear."""
        raise NotImplementedError

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the LoRA pair that equals this layer for one task: down (K, D) and up (O, K) with the scale.

        Raises:
            NotMergeableError: There is no such pair.
        """
        raise NotImplementedError

    def merged_weight(self, task_index: int) -> torch.Tensor:
        """Return the weight (O, D) that equals this layer for one task, in float32 or wider.

        Raises:
            NotMergeableError: There is no such weight.
        """
        down_KD, up_OK = self.fold(task_index)
        weight_OD = self.base.weight
        wide = torch.promote_types(weight_OD.dtype, torch.float32)
        return torch.addmm(weight_OD.to(wide), up_OK.to(wide), down_KD.to(wide))


def add_product(y: torch.Tensor, z: torch.Tensor, up_OK: torch.Tensor, scale: float) -> torch.Tensor:
    """Return y + scale * z up^T (.., O) of y (.., O) and z (.., K), in one pass over y."""
    rows = torch.addmm(y.flatten(0, -2), z.flatten(0, -2), up_OK.to(z.dtype).t(), alpha=scale)
    return rows.view(y.shape)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """Draw from [-bound, bound): kaiming_uniform(a=sqrt(5)) where bound = 1 / sqrt(fan-in)."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
