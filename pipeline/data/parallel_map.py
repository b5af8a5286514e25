"""Map a function over many items, as Ray tasks if this process is connected to Ray, else in this process."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipeline.errors import RelevanceError, RetryableError
from pipeline.runtime.ray_resources import format_resources, free_resources
from pipeline.runtime.waiting import announce_wait

Item = TypeVar("Item")

Result = TypeVar("Result")

# Two, so that a CPU has the next item when it finishes one. It bounds the results that wait in memory.
ITEMS_PER_CPU = 2

MAX_THREADS = 4  # bounds the items that are processed at a time


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], use_threads: bool = False
) -> Iterator[Result]:
    """Yield the results in the order of the items.

    Args:
        function: A module-level function, because Ray sends it by name.
        items: Read as results are taken; with threads, all at once.
        use_threads: Whether to use threads without Ray. They help functions that spend their time in Arrow
            and numpy, which release the GIL.

    Raises:
        RelevanceError: As raised by `function`.
        RetryableError: A Ray worker died, several times in a row.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield from _map_on_ray(ray, function, items)
    elif use_threads:
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
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()

    def next_result() -> Any:
        def reason() -> str:
            free = format_resources(free_resources())
            return (
                f"the next of {len(pending) + 1} Ray tasks ({function.__name__}); the cluster has {free} free"
            )

        reference = pending.popleft()
        with announce_wait(reason):
            return _get_result(ray, reference)

    try:
        for item in items:
            pending.append(task.remote(item))
            if len(pending) >= ITEMS_PER_CPU * num_cpus:
                yield next_result()
        while pending:
            yield next_result()
    finally:
        for reference in pending:
            ray.cancel(reference)


def _get_result(ray: Any, reference: Any) -> Any:
    """Return the result of a Ray task, or raise its RelevanceError."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RelevanceError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise RetryableError(
            f"Ray worker lost ({type(error).__name__}); run the same command again"
        ) from error
