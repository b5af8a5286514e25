"""Clocks of the host and of a device, and the speed of a large matrix product."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

MATRIX = 1024  # large enough that a processor reaches its best

ROUNDS = 5  # after one that warms up

ENOUGH_S = 0.5


@contextlib.contextmanager
def clock(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Add the time spent inside to what `seconds` says of `what`."""
    started_s = time.monotonic()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.monotonic() - started_s


class DeviceClock:
    """The time that a device spends on what is done inside; a GPU, which works on while Python goes on, is
    not waited for until it is asked.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []  # in pairs, a begin and an end: seconds, or events of the GPU's stream

    def restart(self) -> None:
        """Forget what was not asked for."""
        self.marks.clear()

    def __enter__(self) -> None:
        self.marks.append(self._mark())

    def __exit__(self, *_: object) -> None:
        self.marks.append(self._mark())

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self) -> float:
        """Since it was asked last, when all of it is done."""
        wait_for(self.device)
        pairs, self.marks = list(zip(self.marks[::2], self.marks[1::2], strict=True)), []
        return float(sum(a.elapsed_time(b) / 1000 if self.device.type == "cuda" else b - a for a, b in pairs))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on this worker's threads or GPU, measured:
    the fastest of a few, as others may work beside it, or the first one where it takes long, as in a
    precision that the processor does not know.
    """
    size = MATRIX * (8 if device.type == "cuda" else 1)
    one, other = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds: list[float] = []
    while len(seconds) <= ROUNDS and sum(seconds) < ENOUGH_S:
        wait_for(device)
        started_s = time.perf_counter()
        one @ other
        wait_for(device)
        seconds.append(time.perf_counter() - started_s)
    return 2 * size**3 / min(seconds)


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was asked to: it works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
