"""One function over many items: as Ray tasks where this process is connected to Ray, else in this process."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipeline.errors import RelevanceError, RetryableError

Item = TypeVar("Item")

Result = TypeVar("Result")

# handed out at a time, so that a CPU has the next when it is done with one; bounds the results that wait in
# memory
ITEMS_A_CPU = 2

MAX_THREADS = 4  # bounds the items in memory


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: bool = False
) -> Iterator[Result]:
    """Results in the order of the items, however many work on them. `function` is a module's own, as Ray
    sends it by name; where there is no Ray, `threads` says whether it gains from them: whether it spends its
    time in Arrow and numpy, which leave other threads running.

    RelevanceErrors come out as they were raised. RetryableError: a worker died, several times over.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield from _map_on_ray(ray, function, items)
    elif threads:
        yield from _map_in_threads(function, items)
    else:
        yield from map(function, items)


def _map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    pool = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _map_on_ray(ray: Any, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
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
        raise RetryableError(
            f"a Ray worker was lost ({type(error).__name__}); run the same command again"
        ) from error
