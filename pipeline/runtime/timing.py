"""Clocks of the host and of a device, and the speed of a large matrix product."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

MATRIX_SIZE = 1024  # rows and columns; large enough for a CPU to reach its peak

GPU_FACTOR = 8  # larger matrices that a GPU needs

MAX_ROUNDS = 5  # after one round of warm-up

MAX_MEASURE_S = 0.5  # no round starts after this


@contextlib.contextmanager
def record_seconds(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time spent inside to `seconds[name]`."""
    started_s = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started_s


class DeviceClock:
    """Context that adds up the time a device spends on the work inside.

    GPU work is asynchronous, and only `seconds` waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # alternately begin and end: seconds, or events in the GPU's stream
        self.marks: list[Any] = []

    def restart(self) -> None:
        """Drop the time recorded since the last call of `seconds`."""
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
        """Wait for the device and return the seconds recorded since the last call."""
        synchronize(self.device)
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        self.marks = []
        if self.device.type == "cuda":
            return float(sum(begin.elapsed_time(end) / 1000 for begin, end in pairs))
        return float(sum(end - begin for begin, end in pairs))


def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large matrix product on this device.

    The fastest of a few rounds counts, since other processes may use the device too. A slow product, as in a
    precision that the processor emulates, is measured once.
    """
    size = MATRIX_SIZE * (GPU_FACTOR if device.type == "cuda" else 1)
    left = torch.randn(size, size, dtype=dtype, device=device)
    right = torch.randn(size, size, dtype=dtype, device=device)
    seconds: list[float] = []
    while len(seconds) <= MAX_ROUNDS and sum(seconds) < MAX_MEASURE_S:
        synchronize(device)
        started_s = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - started_s)
    return 2 * size**3 / min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its queued work; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
