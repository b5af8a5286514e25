"""A merged model with its large matrices in int8: on CPUs with int8 instructions a product takes less time than in bfloat16 or float32.

Weights are rounded once, each output channel by a scale of its own; what comes in is rounded on the way, each row (token) by its own, so that no row
depends on those beside it and one with outliers, as first tokens are, costs the others nothing
(vector-wise quantization of LLM.int8(), https://arxiv.org/abs/2208.07339).

Shape legend: N rows, D width in, O width out.
"""

import copy
import time
from typing import Any, Literal

import torch
from torch import nn

from models.merge import MergedModel

Precision = Literal["native", "int8"]  # native: as the model was trained and evaluated

STEPS = 127  # of a number's size; -128 is left out, so that the scale is the same on both sides of 0
MIN_WIDTH = 256  # in and out; for a narrower matrix rounding what comes in takes longer than the product saves
CHUNK_ROWS = 256  # whose numbers on the way stay in the cache of a core; all at once took up to three times as long
PRODUCT_WIDTH, PRODUCTS, ENOUGH_S = 1024, 5, 0.5  # of a product that is timed, how often at most, and seconds after which it is not timed again
TINY = 1e-30  # in the place of a scale of 0, of a row of zeros


class Int8Linear(nn.Module):
    """A frozen linear with int8 weights. Products are summed in int32, exactly; the answer has the dtype of what comes in."""

    weight_DO: torch.Tensor
    scale_O: torch.Tensor
    bias_O: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OD = linear.weight.detach().float()
        scale_O = weight_OD.abs().amax(dim=1).clamp_min(TINY) / STEPS
        self.register_buffer("weight_DO", (weight_OD / scale_O[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., O)."""
        parts = [self._product(part_ND) for part_ND in x.reshape(-1, self.in_features).split(CHUNK_ROWS)]
        return torch.cat(parts).view(*x.shape[:-1], self.out_features)

    def _product(self, x_ND: torch.Tensor) -> torch.Tensor:
        # in place, as each fresh piece of memory costs as much as the arithmetic; never in x_ND, which to() gives back where it is float32
        rounded_ND = x_ND.to(torch.float32, copy=True)
        scale_N1 = torch.maximum(rounded_ND.amax(dim=1, keepdim=True), -rounded_ND.amin(dim=1, keepdim=True)).clamp_min_(TINY).div_(STEPS)
        # torch has no public name for this product; its quantized tensors, which have, are deprecated
        sum_NO = torch._int_mm(rounded_ND.div_(scale_N1).round_().to(torch.int8), self.weight_DO)
        out_NO = sum_NO.float().mul_(scale_N1).mul_(self.scale_O)
        return (out_NO if self.bias_O is None else out_NO.add_(self.bias_O)).to(x_ND.dtype)


@torch.inference_mode()
def product_speed(dtype: torch.dtype) -> float:
    """How many times as fast a large linear in int8 is here as one of `dtype`: far below 1 on a processor without int8 instructions, on which a
    whole model in int8 would not end in any sensible time. Each is timed a few times, or once where that takes long."""
    linear = nn.Linear(PRODUCT_WIDTH, PRODUCT_WIDTH, bias=False).to(dtype)
    x_ND = torch.randn(CHUNK_ROWS, PRODUCT_WIDTH).to(dtype)
    fastest = []
    for layer in (linear, Int8Linear(linear)):
        seconds: list[float] = []
        while len(seconds) < PRODUCTS and sum(seconds) < ENOUGH_S:
            started_s = time.perf_counter()
            layer(x_ND)
            seconds.append(time.perf_counter() - started_s)
        fastest.append(min(seconds))
    return fastest[0] / fastest[1]


@torch.no_grad()
def quantize(model: MergedModel) -> MergedModel:
    """The model with int8 in the place of its trunk's large linears. `model` stays as it is: what is not replaced is shared, not copied. The head,
    whose answer is the logits, keeps its numbers, as do narrow linears and whatever is no plain nn.Linear."""
    replaced: dict[int, Any] = {id(tensor): tensor for tensor in [*model.trunk.parameters(), *model.trunk.buffers()]}
    for module in model.trunk.modules():
        if type(module) is nn.Linear and min(module.weight.shape) >= MIN_WIDTH:
            replaced[id(module)] = Int8Linear(module)
    # deepcopy takes what stands in its memo for the copy of a thing
    trunk = copy.deepcopy(model.trunk, replaced)
    return MergedModel(trunk.requires_grad_(False).eval(), model.head, model.pooling).eval()
