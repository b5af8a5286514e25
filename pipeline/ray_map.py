"""One function over many items: as Ray tasks where this process is connected to Ray, else one after another in this process."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipeline.errors import RelevanceError, RetryableError

Item = TypeVar("Item")
Result = TypeVar("Result")
ITEMS_A_CPU = 2  # handed out at a time, so that a CPU has the next when it is done with one; bounds the results that wait in memory


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in the order of the items, however many work on them. `function` is a module's own, as Ray sends it by name.

    RelevanceErrors come out as they were raised. RetryableError: a worker died, several times over.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        yield from map(function, items)
        return
    task = ray.remote(num_cpus=1)(function)
    at_once = ITEMS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    try:
        for item in items:
            pending.append(task.remote(item))
            if len(pending) >= at_once:
                yield result_of(ray, pending.popleft())
        while pending:
            yield result_of(ray, pending.popleft())
    finally:
        for reference in pending:
            ray.cancel(reference)


def result_of(ray: Any, reference: Any) -> Any:
    """What a task returned."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RelevanceError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise RetryableError(f"a Ray worker was lost ({type(error).__name__}); run the same command again") from error
