"""Plans of steps that the caller runs one by one."""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from pipeline.inference.step_plan import Plan, Step, planned


@planned
def plan_sums(values: list[int]) -> Generator[Step[Any], None, int]:
    """Each step adds one value to the sum of the steps before."""
    total = 0
    for row, value in enumerate(values):
        step = Step(np.array([row]), lambda total=total, value=value: total + value)
        yield step
        total = step.result
    return total


@planned
def plan_twice(values: list[int]) -> Generator[Step[Any], None, tuple[int, int]]:
    first = yield from plan_sums(values)
    second = yield from plan_sums(values).renumbered(np.arange(len(values))[::-1])
    return first, second


def test_steps_run_when_the_caller_runs_them() -> None:
    plan, rows = plan_sums([3, 4, 5]), []
    for step in plan:
        rows.append(step.rows.tolist())
        step.run()
    assert rows == [[0], [1], [2]] and plan.result == 12


def test_run_returns_the_result_of_nested_plans() -> None:
    assert plan_twice([1, 2]).run() == (3, 3)


def test_renumbered_steps_have_the_rows_of_the_caller() -> None:
    plan, rows = plan_sums([3, 4]).renumbered(np.array([70, 80])), []
    for step in plan:
        rows += step.rows.tolist()
        step.run()
    assert rows == [70, 80] and plan.result == 7


def test_skipped_step_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="step has not run"):
        list(plan_sums([3, 4]))


def test_step_runs_once() -> None:
    step = Step(np.array([0]), lambda: 1)
    step.run()
    with pytest.raises(RuntimeError, match="step has run already"):
        step.run()


def test_result_of_an_unfinished_plan_is_an_error() -> None:
    plan: Plan[int] = plan_sums([3])
    next(iter(plan)).run()
    with pytest.raises(RuntimeError, match="plan is not finished"):
        _ = plan.result


def test_error_of_a_step_reaches_the_caller() -> None:
    @planned
    def failing() -> Generator[Step[Any], None, None]:
        yield Step(np.array([0]), lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        failing().run()
