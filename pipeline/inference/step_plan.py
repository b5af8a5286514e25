"""Computations over rows that hand out their steps, so that the caller can act before each one.

An actor records the rows of a step before the step runs:

    plan = predictor.plan_logits(encoded, batch_tokens)
    for step in plan:
        attempts.record(step.rows)
        step.run()
    logits_NC = plan.result
"""

import functools
from collections.abc import Callable, Generator
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


class Step(Generic[Result]):
    """Planned work on some rows."""

    def __init__(self, rows: np.ndarray, compute: Callable[[], Result]) -> None:
        self.rows = rows  # row numbers
        self._compute: Callable[[], Result] | None = compute
        self._result: Result | None = None

    def run(self) -> None:
        """Do the work. A step runs once."""
        if self._compute is None:
            raise RuntimeError("step has run already; ask the plan for the next one")
        self._result = self._compute()
        self._compute = None  # frees the tensors that it refers to

    @property
    def result(self) -> Result:
        """Value of the work; raises RuntimeError until the step has run."""
        if self._compute is not None:
            raise RuntimeError("step has not run; call run() before asking the plan for the next step")
        return self._result  # type: ignore[return-value]


class Plan(Generic[Result]):
    """Steps that together compute one result.

    Later steps depend on the results of earlier ones: the caller runs each step before it asks for the next.
    """

    def __init__(self, steps: Generator[Step[Any], None, Result]) -> None:
        self._steps = steps
        self._results: list[Result] = []  # empty until all steps have run

    def __iter__(self) -> Generator[Step[Any], None, Result]:
        result = yield from self._steps
        self._results.append(result)
        return result

    @property
    def result(self) -> Result:
        """Value of the whole computation; raises RuntimeError while steps are left."""
        if not self._results:
            raise RuntimeError("plan is not finished; iterate over it and run each step")
        return self._results[0]

    def run(self) -> Result:
        """Run all steps and return the result."""
        for step in self:
            step.run()
        return self.result

    def renumbered(self, rows: np.ndarray) -> "Plan[Result]":
        """Return the same plan for a caller that knows row `n` of this plan as `rows[n]`."""

        def steps() -> Generator[Step[Any], None, Result]:
            for step in self:
                yield Step(rows[step.rows], step.run)
            return self.result

        return Plan(steps())


def planned(
    steps: Callable[Parameters, Generator[Step[Any], None, Result]],
) -> Callable[Parameters, Plan[Result]]:
    """Turn a generator of steps that returns a result into a function that returns a `Plan`."""

    @functools.wraps(steps)
    def plan(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Plan[Result]:
        return Plan(steps(*args, **kwargs))

    return plan
