"""How much of a machine's arithmetic training and scoring use."""

import contextlib
import statistics
import time
from collections.abc import Iterator

import torch
from torch import nn

MATRIX = 1024  # large enough that a processor reaches its best
ROUNDS = 5


@contextlib.contextmanager
def clock(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Add the time spent inside to what `seconds` says of `what`."""
    started_s = time.monotonic()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.monotonic() - started_s


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on this worker's threads or GPU, measured: the median of a few."""
    size = MATRIX * (8 if device.type == "cuda" else 1)
    one, other = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 1):
        wait_for(device)
        started_s = time.perf_counter()
        one @ other
        wait_for(device)
        seconds.append(time.perf_counter() - started_s)
    return 2 * size**3 / statistics.median(seconds[1:])


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was asked to: it works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_flops_per_token(model: nn.Module) -> int:
    """Two for each number of a frozen matrix. Attention's own products and the adapters, some hundredths at query-ad lengths, are left out."""
    return 2 * sum(p.numel() for name, p in model.named_parameters() if not p.requires_grad and p.ndim == 2 and "embed" not in name)


def seconds_at_peak(model: nn.Module, device: torch.device, dtype: torch.dtype) -> float:
    """That a token would take if this machine did nothing but large matrix products; 0 where it has no room to find out."""
    try:
        return forward_flops_per_token(model) / matmul_peak(device, dtype)
    except RuntimeError:  # out of memory, on a GPU
        return 0.0


def flops_per_token(model: nn.Module) -> int:
    """Of a training step: forward, and as many backward, where gradients pass through frozen matrices and none is kept for them."""
    return 2 * forward_flops_per_token(model)
