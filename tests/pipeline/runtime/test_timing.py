"""Device clocks, FLOP counts and the measured peak of a matrix product."""

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.runtime import timing
from pipeline.runtime.flops import forward_flops_per_token
from pipeline.runtime.timing import DeviceClock, measure_matmul_peak


def test_device_clock_counts_time_inside_and_restarts() -> None:
    clock = DeviceClock(torch.device("cpu"))
    for _ in range(2):
        with clock:
            time.sleep(0.02)
        time.sleep(0.02)
    assert 0.04 <= clock.seconds() < 0.06 + 0.5
    assert clock.seconds() == 0
    with pytest.raises(ZeroDivisionError), clock:
        raise ZeroDivisionError
    clock.restart()
    assert clock.seconds() == 0


def test_gpu_is_waited_for_once_per_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[Any] = []
    ticks = iter(range(100))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            self.at_ms = 1000 * next(ticks) ** 2

        def elapsed_time(self, end: Any) -> float:
            assert waits, "read only after the device has finished"
            return float(end.at_ms - self.at_ms)

    cuda = SimpleNamespace(Event=Event, current_stream=lambda device: "stream", synchronize=waits.append)
    monkeypatch.setattr(timing.torch, "cuda", cuda)
    clock = DeviceClock(torch.device("cuda"))
    for _ in range(2):
        with clock:
            assert not waits
    assert clock.seconds() == (1 - 0) + (9 - 4) and len(waits) == 1


def test_flops_count_frozen_matrices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(9, 4), "frozen": torch.nn.Linear(4, 3), "trained": torch.nn.Linear(4, 5)}
    )
    model["embed"].requires_grad_(False)
    model["frozen"].requires_grad_(False)
    assert forward_flops_per_token(model) == 2 * 4 * 3
    monkeypatch.setattr(timing, "MATRIX_SIZE", 64)
    assert measure_matmul_peak(torch.device("cpu"), torch.float32) > 1e6


def test_slow_precision_is_measured_by_one_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = itertools.count(0, 3)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(timing, "MATRIX_SIZE", 4)
    assert measure_matmul_peak(torch.device("cpu"), torch.bfloat16) == 2 * 4**3 / 3
    assert next(seconds) == 6
