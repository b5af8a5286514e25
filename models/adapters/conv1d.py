"""GPT-2's `Conv1D`, a linear with its weight transposed, as an `nn.Linear` for adapters.

Shape legend: D width in, O width out.
"""

import sys
from typing import Any

from torch import nn


class LinearFromConv1D(nn.Linear):
    """A linear in place of a Conv1D. Its model's files hold the weight as (D, O)."""


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is a Conv1D of transformers, without importing transformers."""
    utilities = sys.modules.get("transformers.pytorch_utils")
    return utilities is not None and isinstance(module, utilities.Conv1D)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return the widths in and out of a linear or Conv1D, None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_conv1d(module):
        conv: Any = module
        return conv.nx, conv.nf
    return None


def linear_from_conv1d(module: nn.Module) -> Any:
    """Return a linear that equals a Conv1D; return any other module unchanged."""
    if not is_conv1d(module):
        return module
    conv: Any = module
    linear = LinearFromConv1D(conv.nx, conv.nf, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().t().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return linear
