"""Frozen linears whose weights are stored in 4 or 8 bits (QLoRA: Dettmers et al., NeurIPS 2023).

    y = x D^T + b        D is the dequantised weight, rebuilt for each product and never kept

bitsandbytes stores the weights; its own products are not used, for two reasons:

- those of 8-bit linears round the inputs too, with outliers that depend on the other rows of the batch,
- those of 4-bit linears repack the weights for inference on a CPU.

So training, merged weights and exports all have the same D.

Shape legend: D width in, O width out, P packed bytes, K blocks of weights with one scale. `..` stands for any
leading dimensions.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class QuantizedLinear(nn.Linear):
    """A frozen linear that dequantises its weight at each use.

    Callers use it as a plain linear: `weight` and `state_dict` have the dequantised weight.
    """

    def __init__(self, stored: nn.Linear, dtype: torch.dtype) -> None:
        """Share the bias and take the widths of a linear; subclasses take its weight.

        Args:
            stored: A linear of bitsandbytes.
            dtype: Dtype of the dequantised weight; that of the inputs.
        """
        nn.Module.__init__(self)  # that of nn.Linear would create a weight
        self.in_features, self.out_features = stored.in_features, stored.out_features
        self.dtype = dtype
        self.bias = stored.bias
        self.requires_grad_(False)
        self.register_state_dict_post_hook(_add_weight)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The dequantised weight (O, D), a new tensor at each access."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return DequantizedProduct.apply(x, self)  # type: ignore[no-any-return]


class FourBitLinear(QuantizedLinear):
    """A linear with a weight in blocks of 4-bit codes, NF4 or FP4, and a scale per block."""

    codes_P: torch.Tensor
    scale_bits_K: torch.Tensor

    def __init__(self, stored: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(stored, dtype)
        weight: Any = stored.weight
        state = weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError("its weights are packed for inference on a CPU; load the model again")
        scale_K = state.absmax
        if state.nested:
            from bitsandbytes.functional import dequantize_blockwise

            scale_K = dequantize_blockwise(state.absmax, state.state2) + state.offset
        self.block_size, self.code_type = state.blocksize, state.quant_type
        # packed weights may have any dtype: checkpoints for FSDP have that of the other weights
        self.register_buffer("codes_P", weight.data.view(torch.uint8).flatten(), persistent=False)
        self.register_buffer("scale_bits_K", _float32_bits(scale_K), persistent=False)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            absmax=self.scale_bits_K.view(torch.float32),
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=self.block_size,
            quant_type=self.code_type,
            dtype=self.dtype,
        )
        return dequantize_4bit(self.codes_P.unsqueeze(1), state)  # type: ignore[no-any-return]


class EightBitLinear(QuantizedLinear):
    """A linear with a weight of 8-bit integers, and a scale per output (LLM.int8: Dettmers et al., 2022)."""

    codes_OD: torch.Tensor
    scale_bits_O: torch.Tensor

    def __init__(self, stored: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(stored, dtype)
        weight, state = stored.weight, getattr(stored, "state", None)
        absmax_O: Any = getattr(weight, "SCB", None)
        if absmax_O is None:  # a forward pass moves it to the state
            absmax_O = getattr(state, "SCB", None)
        if weight.dtype != torch.int8 or absmax_O is None:
            raise ValueError(
                f"its weights are {weight.dtype} without scales, not 8-bit integers; load the model again"
            )
        self.register_buffer("codes_OD", weight.data, persistent=False)
        self.register_buffer("scale_bits_O", _float32_bits(absmax_O.float() / 127), persistent=False)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        weight_OD = torch.empty(self.codes_OD.shape, dtype=self.dtype, device=self.codes_OD.device)
        return torch.mul(self.codes_OD, self.scale_bits_O.view(torch.float32)[:, None], out=weight_OD)


class DequantizedProduct(torch.autograd.Function):
    """The product x D^T + b; the backward pass dequantises D again rather than keeping it."""

    @staticmethod
    def forward(x: torch.Tensor, linear: QuantizedLinear) -> torch.Tensor:
        bias_O = None if linear.bias is None else linear.bias.to(x.dtype)
        return functional.linear(x, linear.weight.to(x.dtype), bias_O)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.linear = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.linear.weight.to(gradient.dtype), None


def replace_quantized_linears(trunk: nn.Module, dtype: torch.dtype) -> None:
    """Replace all linears of bitsandbytes in a trunk, in place.

    Args:
        trunk: The trunk.
        dtype: Dtype of the dequantised weights; that of the trunk's other weights.

    Raises:
        ValueError: Names a linear that is neither stored in 4 or 8 bits nor floating.
    """
    for name, module in list(trunk.named_modules()):
        if isinstance(module, nn.Linear):
            try:
                linear = freeze_linear(module, dtype)
            except ValueError as error:
                raise ValueError(f"linear {name} cannot be used: {error}") from error
            if linear is not module:
                trunk.set_submodule(name, linear)


def freeze_linear(linear: nn.Linear, dtype: torch.dtype | None = None) -> nn.Linear:
    """Freeze a linear and return it, or a `QuantizedLinear` in place of one of bitsandbytes.

    Args:
        linear: The linear.
        dtype: Dtype of a dequantised weight; default: the linear's compute dtype, float32 for 8 bits.

    Raises:
        ValueError: The weight is neither a floating matrix (O, D) nor stored by bitsandbytes.
    """
    weight: Any = linear.weight
    if isinstance(linear, QuantizedLinear):
        return linear
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return FourBitLinear(linear, dtype or getattr(linear, "compute_dtype", None) or state.dtype)
    if hasattr(weight, "SCB"):
        return EightBitLinear(linear, dtype or torch.float32)
    _check_floating_matrix(weight, (linear.out_features, linear.in_features))
    return linear.requires_grad_(False)


def _check_floating_matrix(weight: torch.Tensor, shape: tuple[int, int]) -> None:
    """Check that a weight is a floating matrix of this shape, and not codes that need scales.

    Raises:
        ValueError: Names the dtype and shape that it has.
    """
    if not weight.is_floating_point() or weight.element_size() < 2 or tuple(weight.shape) != shape:
        raise ValueError(
            f"its weight is {str(weight.dtype).removeprefix('torch.')} of shape {tuple(weight.shape)} in "
            f"place of a floating matrix of shape {shape}; use an unquantised model"
        )


def is_quantized(module: nn.Module) -> bool:
    """Return whether a module has linears that are stored in 4 or 8 bits."""
    return any(isinstance(child, QuantizedLinear) for child in module.modules())


def linear_dtype(linear: nn.Linear) -> torch.dtype:
    """Return the dtype of a linear's weight, without dequantising it."""
    return linear.dtype if isinstance(linear, QuantizedLinear) else linear.weight.dtype


def _add_weight(linear: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Add the dequantised weight of a quantised linear to its state dict."""
    state[prefix + "weight"] = linear.weight


def _float32_bits(scale: torch.Tensor) -> torch.Tensor:
    """Return the bits of float32 numbers as int32, which `module.to(dtype)` does not round."""
    return scale.float().contiguous().view(torch.int32)
