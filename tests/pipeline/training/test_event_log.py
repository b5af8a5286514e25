"""What a step is told as."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training.event_log import live_record
from pipeline.training.step import StepDone


def test_arithmetic_is_that_of_tokens_and_of_rows_and_padding_is_none() -> None:
    worker: Any = SimpleNamespace(
        sampler=SimpleNamespace(global_rows=lambda step: np.array([0, 2])),
        config=SimpleNamespace(
            tasks=[SimpleNamespace(name="a"), SimpleNamespace(name="b")],
            optimizer=SimpleNamespace(learning_rate=0.5),
        ),
        encoded=SimpleNamespace(length_N=np.array([4, 9, 5])),
        num_steps=9,
        flops_per_token=100,
        flops_per_row=30,
        peak_flops_per_s=1000.0,
        world_size=2,
    )
    done = StepDone(
        3,
        0.1,
        torch.device("cpu"),
        np.array([3.0, 0.0]),
        np.array([2.0, 0.0]),
        {"heads": 3.0, "mixtures": 4.0},
    )
    done.tokens_computed, done.num_padding = 12, 2
    told = live_record(worker, done, step_s=0.5)
    assert told["mfu"] == pytest.approx((10 * 100 + 2 * 30) / (0.5 * 2 * 1000))
    assert (told["step"], told["rows"], told["tokens"], told["tokens_per_s"]) == (4, 2, 9, 18)
    assert told["task_losses"] == {"a": 1.5} and told["loss"] == 1.5 and told["gradient_norm"] == 5
