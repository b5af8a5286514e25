"""Products with frozen weights for training in float32 on a CPU.

A matrix product first copies its weight into blocks that suit the caches, which at a few hundred tokens is a tenth of its time. A frozen weight is
laid out so once, by oneDNN, and once more transposed, where a gradient goes through: two copies of it beside the weight itself.

Shape legend: D width in, O width out.
"""

from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn import functional

from models.inject import replace_module


class LaidOut:
    """A weight in oneDNN's blocks, for both directions."""

    def __init__(self, weight_OD: torch.Tensor) -> None:
        self.weight_OD = weight_OD  # held, so that no other weight can get its address
        self.version = weight_OD._version

    @cached_property
    def forward(self) -> torch.Tensor:
        """For x W^T."""
        return torch.ops.mkldnn._reorder_linear_weight(self.weight_OD, TOKENS)  # type: ignore[no-any-return]

    @cached_property
    def backward(self) -> torch.Tensor:
        """For its gradient times W."""
        return torch.ops.mkldnn._reorder_linear_weight(self.weight_OD.t().contiguous(), TOKENS)  # type: ignore[no-any-return]

    def __deepcopy__(self, _: Any) -> "LaidOut":
        return self  # its numbers never change


LAID_OUT: WeakValueDictionary[int, LaidOut] = WeakValueDictionary()  # by the address of a weight's numbers; layers hold them
TOKENS = 512  # that blocks are chosen for; any number can be multiplied


class FrozenLinear(nn.Linear):
    """The linear it is made of. Were its weight replaced or changed in place, products would be the usual ones again; a change through `.data`
    is not seen."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.laid_out = laid_out(linear.weight) or LaidOut(linear.weight.detach())
        LAID_OUT[linear.weight.data_ptr()] = self.laid_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(.., D) -> (.., O)."""
        y = frozen_product(x, self.weight)
        return y if self.bias is None else y + self.bias


def lay_out_frozen(module: nn.Module) -> None:
    """Put a `FrozenLinear` in the place of each frozen linear below `module` that can have one: float32 on a CPU, where torch has oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for name, linear in list(module.named_modules()):
        # one that something is to happen before stays, or it would happen no more
        if type(linear) is nn.Linear and not linear._forward_pre_hooks and can_be_laid_out(linear.weight):
            replace_module(module, name, FrozenLinear(linear))


def can_be_laid_out(weight_OD: torch.Tensor) -> bool:
    """Whether it is of those that gain by it."""
    return not weight_OD.requires_grad and weight_OD.dtype == torch.float32 and weight_OD.device.type == "cpu"


def laid_out(weight_OD: torch.Tensor) -> LaidOut | None:
    """What was laid out of this weight, if it is still as it was then."""
    found = LAID_OUT.get(weight_OD.data_ptr())
    return found if found is not None and found.version == weight_OD._version else None


def multiply(x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """A new (.., O) of (.., D) and a weight (O, D) in blocks."""
    return torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), blocks, None, "none", [], "")  # type: ignore[no-any-return]


def product(x: torch.Tensor, weight_OD: torch.Tensor) -> torch.Tensor:
    """x W^T: (.., D) -> (.., O), contiguous."""
    found = laid_out(weight_OD)
    return functional.linear(x, weight_OD) if found is None or x.dtype != weight_OD.dtype else multiply(x, found.forward)


def product_gradient(gradient: torch.Tensor, weight_OD: torch.Tensor) -> torch.Tensor:
    """The gradient of what goes into `product`: (.., O) -> (.., D), contiguous."""
    found = laid_out(weight_OD)
    return gradient @ weight_OD if found is None else multiply(gradient, found.backward)


def keep_weight(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    """For the backward pass."""
    ctx.save_for_backward(inputs[1])


def product_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None]:
    """The weight is frozen: it gets none."""
    (weight_OD,) = ctx.saved_tensors
    return frozen_product_gradient(gradient, weight_OD) if ctx.needs_input_grad[0] else None, None


# torch.compile takes these two as they are: weights in blocks have no strides that it could trace
LIBRARY = torch.library.Library("ads_relevance", "DEF")
for name, kernel, width in (("frozen_product", product, 0), ("frozen_product_gradient", product_gradient, 1)):
    LIBRARY.define(f"{name}(Tensor x, Tensor weight) -> Tensor")
    LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"ads_relevance::{name}", lambda x, weight, width=width: x.new_empty(*x.shape[:-1], weight.shape[width]), lib=LIBRARY)
frozen_product = torch.ops.ads_relevance.frozen_product.default
frozen_product_gradient = torch.ops.ads_relevance.frozen_product_gradient.default
torch.library.register_autograd("ads_relevance::frozen_product", product_backward, setup_context=keep_weight, lib=LIBRARY)
