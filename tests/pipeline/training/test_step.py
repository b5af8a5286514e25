"""Tests of the event of a step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.training.step import StepResult, step_event


def test_flops_count_tokens_and_rows_but_no_padding() -> None:
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
    result = StepResult(
        step=3,
        rate_scale=0.1,
        loss_T=np.array([3.0, 0.0]),
        weight_T=np.array([2.0, 0.0]),
        group_norms={"heads": 3.0, "mixtures": 4.0},
        stop_requested=False,
        tokens_computed=12,
        num_padding=2,
        seconds={"forward": 0.1234567},
    )
    event = step_event(worker, result, step_s=0.5)
    assert event.mfu == pytest.approx((10 * 100 + 2 * 30) / (0.5 * 2 * 1000))
    assert (event.step, event.rows, event.tokens, event.tokens_per_s) == (4, 2, 9, 18)
    assert event.task_losses == {"a": 1.5} and event.loss == 1.5 and event.gradient_norm == 5
    assert event.learning_rate == 0.05 and event.seconds == {"forward": 0.123457}
