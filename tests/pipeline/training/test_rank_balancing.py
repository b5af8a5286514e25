"""Rows dealt to ranks: each row once, equal numbers, and the rank with most tokens about as near to the mean
as any dealing gets it.
"""

from itertools import combinations

import numpy as np
import pytest

from pipeline.training.rank_balancing import (
    changes,
    deal_by_length,
    deal_by_task,
    together,
    tokens_of,
    tokens_of_ranks,
)

BEGINNING_T = np.array([10, 25, 0, 7])


def batch(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, shortest first, and tasks."""
    random = np.random.default_rng(seed)
    task_B = random.integers(0, 4, num_rows)
    return np.sort(random.integers(26, 80, num_rows)), task_B


def most(shares: list[np.ndarray], length_B: np.ndarray, task_B: np.ndarray) -> int:
    """Tokens of the rank that has most."""
    return max(tokens_of_ranks(length_B - BEGINNING_T[task_B], task_B, BEGINNING_T, shares))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 8, 65])
def test_every_row_is_dealt_once_and_as_many_to_each_rank(num_rows: int, world_size: int) -> None:
    length_B, task_B = batch(num_rows, 0)
    for shares in (
        deal_by_length(num_rows, world_size),
        deal_by_task(length_B, task_B, BEGINNING_T, world_size),
    ):
        assert len(shares) == world_size
        assert sorted(np.concatenate(shares).tolist()) == list(range(num_rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_a_rank_goes_through_is_its_rows_without_their_beginnings_and_each_beginning_once() -> None:
    task_B, length_B = np.array([1, 1, 3]), np.array([30, 40, 50])
    assert tokens_of(length_B - BEGINNING_T[task_B], task_B, BEGINNING_T) == (5 + 15 + 25) + (43 + 7)


def test_changes_are_what_going_through_the_changed_rows_would_take() -> None:
    for seed in range(20):
        length_B, task_B = batch(9, seed)
        tail_B, given, taken = length_B - BEGINNING_T[task_B], np.arange(5), np.arange(5, 9)
        found = changes(tail_B, task_B, BEGINNING_T, given, taken)
        for i, j in np.ndindex(found.shape):
            after = np.append(np.delete(given, i), taken[j])
            before, now = (tokens_of(tail_B[rows], task_B[rows], BEGINNING_T) for rows in (given, after))
            assert found[i, j] == now - before


def test_no_dealing_of_eight_rows_to_two_ranks_is_much_better() -> None:
    found, best, by_length = [], [], []
    for seed in range(60):
        length_B, task_B = batch(8, seed)
        every = [[np.array(one), np.setdiff1d(np.arange(8), one)] for one in combinations(range(8), 4)]
        best.append(min(most(shares, length_B, task_B) for shares in every))
        found.append(most(deal_by_task(length_B, task_B, BEGINNING_T, 2), length_B, task_B))
        by_length.append(most(deal_by_length(8, 2), length_B, task_B))
    assert sum(found) <= 1.01 * sum(best) and sum(by_length) > 1.05 * sum(best)


@pytest.mark.parametrize(("num_rows", "world_size"), [(32, 2), (128, 4), (512, 8), (96, 32)])
def test_larger_batches_are_dealt_no_worse_than_by_length_and_mostly_better(
    num_rows: int, world_size: int
) -> None:
    better = 0
    for seed in range(5):
        length_B, task_B = batch(num_rows, seed)
        found = most(deal_by_task(length_B, task_B, BEGINNING_T, world_size), length_B, task_B)
        by_length = most(deal_by_length(num_rows, world_size), length_B, task_B)
        assert found <= by_length
        better += found < by_length
    assert better >= 4


def test_a_task_that_ranks_share_gives_each_of_them_rows_of_all_its_lengths() -> None:
    length_B = np.arange(20, 60)
    shares = together(length_B, np.zeros(40, np.int64), 4)
    assert [len(share) for share in shares] == [10] * 4
    assert np.ptp([length_B[share].mean() for share in shares]) <= 3
