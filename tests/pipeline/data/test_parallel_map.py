"""Results come in the order of the items, wherever they were worked on. As Ray tasks:
tests/validation/gate/test_runner.py.
"""

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


def test_threads_work_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)
    assert len(list(map_in_order(lambda _: both.wait(), range(2), threads=True))) == 2


@pytest.mark.parametrize("threads", [False, True])
def test_an_error_comes_out_as_it_was_raised_and_ends_the_rest(threads: bool) -> None:
    seen = []

    def refuse(item: int) -> None:
        seen.append(item)
        raise DataRefusedError(f"item {item}")

    with pytest.raises(DataRefusedError, match="item 0"):
        list(map_in_order(refuse, iter(range(1_000)), threads))
    assert len(seen) < 1_000


def test_nothing_is_no_result() -> None:
    def never() -> Iterator[int]:
        yield from ()

    assert list(map_in_order(abs, never(), threads=True)) == []
