"""How much of a machine's arithmetic training and scoring use."""

import torch
from torch import nn

from models.relevance import RelevanceModel
from pipeline.runtime.timing import matmul_peak


def forward_flops_per_token(model: nn.Module) -> int:
    """Two for each number of a frozen matrix. Attention's own products and the adapters, some hundredths at
    query-ad lengths, are left out.
    """
    return 2 * sum(
        p.numel()
        for name, p in model.named_parameters()
        if not p.requires_grad and p.ndim == 2 and "embed" not in name
    )


def seconds_at_peak(model: nn.Module, device: torch.device, dtype: torch.dtype) -> float:
    """That a token would take if this machine did nothing but large matrix products; 0 where it has no room
    to find out.
    """
    try:
        return forward_flops_per_token(model) / matmul_peak(device, dtype)
    except RuntimeError:  # out of memory, on a GPU
        return 0.0


def flops_per_token(model: nn.Module) -> int:
    """Of a training step: forward, and as many backward, where gradients pass through frozen matrices and
    none is kept for them.
    """
    return 2 * forward_flops_per_token(model)


def step_flops(model: RelevanceModel) -> tuple[int, int]:
    """Of a training step, for each token, and beside it for each row: where rows are packed, parts of the
    last layer take one token of a row.
    """
    of_rows = (
        sum(flops_per_token(module) for module in model.read_tokens.modules)
        if model.read_tokens is not None
        else 0
    )
    return flops_per_token(model) - of_rows, of_rows
