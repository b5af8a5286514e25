"""Ordered map over items, in this process; tests/validation/gate/test_runner.py has Ray tasks."""

import threading
from collections.abc import Iterator

import pytest

from pipeline.data.parallel_map import map_in_order
from pipeline.errors import DataRefusedError


@pytest.mark.parametrize("threads", [False, True])
def test_results_come_in_the_order_of_the_items(threads: bool) -> None:
    def late_first(item: int) -> int:
        threading.Event().wait(0.02 if item == 0 else 0)
        return item * item

    assert list(map_in_order(late_first, range(20), threads)) == [n * n for n in range(20)]


def test_threads_run_in_parallel() -> None:
    both = threading.Barrier(2, timeout=20)
    assert len(list(map_in_order(lambda _: both.wait(), range(2), use_threads=True))) == 2


@pytest.mark.parametrize("threads", [False, True])
def test_error_is_raised_unchanged_and_stops_the_rest(threads: bool) -> None:
    seen = []

    def refuse(item: int) -> None:
        seen.append(item)
        threading.Event().wait(0.001)  # or threads finish all items before the error arrives
        raise DataRefusedError(f"item {item}")

    with pytest.raises(DataRefusedError, match="item 0"):
        list(map_in_order(refuse, iter(range(1_000)), threads))
    assert len(seen) < 1_000


def test_no_items_give_no_results() -> None:
    def never() -> Iterator[int]:
        yield from ()

    assert list(map_in_order(abs, never(), use_threads=True)) == []
