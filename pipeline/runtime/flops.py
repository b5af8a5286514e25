"""FLOP counts of training and scoring, to compare with the peak of the machine."""

import torch
from torch import nn

from models.quantization import QuantizedLinear
from models.relevance import RelevanceModel
from pipeline.runtime.timing import measure_matmul_peak


def forward_flops_per_token(model: nn.Module) -> int:
    """Count the operations of a forward pass per token: two for each number of a frozen matrix.

    Attention scores and adapters are left out: a few hundredths at the lengths of queries and ads.
    """
    plain = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.ndim == 2 and "embed" not in name
    )
    quantized = sum(
        module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, QuantizedLinear)
    )
    return 2 * (plain + quantized)


def peak_seconds_per_token(model: nn.Module, device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds per token of a forward pass at the measured matmul peak of this machine.

    The result is 0 if the device has too little free memory to measure the peak.
    """
    try:
        return forward_flops_per_token(model) / measure_matmul_peak(device, dtype)
    except RuntimeError:  # out of memory, on a GPU
        return 0.0


def training_flops_per_token(model: nn.Module) -> int:
    """Count the operations of a training step per token.

    The backward pass costs as much as the forward pass: gradients flow through frozen matrices, but none is
    computed for their weights.
    """
    return 2 * forward_flops_per_token(model)


def step_flops(model: RelevanceModel) -> tuple[int, int]:
    """Count the operations of a training step: (per token, per row).

    Where rows are packed, parts of the last layer process one token of a row.
    """
    per_row = 0
    if model.last_layer_selector is not None:
        per_row = sum(training_flops_per_token(module) for module in model.last_layer_selector.modules)
    return training_flops_per_token(model) - per_row, per_row
