"""Linears as bitsandbytes stores them, with and without the package.

Shape legend: D width in, O width out, K blocks of 64 weights.
"""

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BLOCK_SIZE = 64

# NF4 of QLoRA (Dettmers et al., 2023), appendix E
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)

KINDS = ("nf4", "int8")
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
MAKERS = pytest.mark.parametrize(
    "package",
    (
        "stub",
        pytest.param(
            "bitsandbytes", marks=pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is missing")
        ),
    ),
)


@dataclass
class QuantState:
    """The fields of bitsandbytes.functional.QuantState that a dequantisation needs."""

    absmax: torch.Tensor
    shape: torch.Size
    blocksize: int
    quant_type: str
    dtype: torch.dtype
    nested: bool = False


def dequantize_4bit(codes: torch.Tensor, state: QuantState) -> torch.Tensor:
    """Do what bitsandbytes.functional.dequantize_4bit does, in plain torch."""
    assert codes.dtype == torch.uint8 and state.quant_type == "nf4" and state.blocksize == BLOCK_SIZE
    pairs = torch.stack([codes.flatten() >> 4, codes.flatten() & 15], dim=1)
    numbers = NF4[pairs.flatten().int()].view(-1, BLOCK_SIZE) * state.absmax[:, None]
    return numbers.view(state.shape).to(state.dtype)


def install_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import bitsandbytes.functional` find the functions of this module."""
    functional: Any = ModuleType("bitsandbytes.functional")
    functional.QuantState, functional.dequantize_4bit = QuantState, dequantize_4bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)


def store(linear: nn.Linear, kind: str, package: str) -> nn.Linear:
    """Return a linear of bitsandbytes, or a stub of one, that stores the weight of `linear`."""
    if package == "stub":
        return _stub_4bit(linear) if kind == "nf4" else _stub_8bit(linear)
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    weight = linear.weight.detach().clone()
    stored: nn.Linear
    if kind == "nf4":
        stored = Linear4bit(*shape, compute_dtype=weight.dtype, quant_type="nf4")
        stored.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    else:
        stored = Linear8bitLt(*shape, has_fp16_weights=False)
        stored.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    stored.bias = linear.bias
    return stored.to("cpu")


class _StoredWeight(nn.Parameter):
    """A parameter with further attributes, as those of bitsandbytes."""


def _stub_4bit(linear: nn.Linear) -> nn.Linear:
    """Store a weight as Linear4bit does: bytes of two codes each, (O * D / 2, 1)."""
    weight_OD = linear.weight.detach()
    blocks = weight_OD.float().reshape(-1, BLOCK_SIZE)
    absmax_K = blocks.abs().amax(dim=1)
    codes = ((blocks / absmax_K[:, None])[..., None] - NF4).abs().argmin(dim=-1).to(torch.uint8).flatten()
    weight: Any = _StoredWeight((codes[::2] << 4 | codes[1::2])[:, None], requires_grad=False)
    weight.quant_state = QuantState(absmax_K, weight_OD.shape, BLOCK_SIZE, "nf4", weight_OD.dtype)
    return _stub(linear, weight)


def _stub_8bit(linear: nn.Linear) -> nn.Linear:
    """Store a weight as Linear8bitLt does: integers (O, D), and the largest size of each row (O,)."""
    weight_OD = linear.weight.detach().float()
    largest_O = weight_OD.abs().amax(dim=1)
    codes_OD = (weight_OD * (127 / largest_O[:, None])).round().to(torch.int8)
    weight: Any = _StoredWeight(codes_OD, requires_grad=False)
    weight.SCB = largest_O
    return _stub(linear, weight)


def _stub(linear: nn.Linear, weight: nn.Parameter) -> nn.Linear:
    stored = nn.Linear(linear.in_features, linear.out_features, bias=False)
    stored.weight, stored.bias = weight, linear.bias
    return stored
