"""Tests of rank balancing: every row once, equal row counts, nearly equal tokens."""

from itertools import combinations

import numpy as np
import pytest

from pipeline.training.rank_balancing import (
    count_tokens,
    count_tokens_per_rank,
    deal_by_length,
    deal_by_task,
    group_by_task,
    token_changes,
)

PREFIX_LENGTH_T = np.array([10, 25, 0, 7])


def draw_batch(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row lengths, shortest first, and tasks."""
    random = np.random.default_rng(seed)
    task_B = random.integers(0, 4, num_rows)
    return np.sort(random.integers(26, 80, num_rows)), task_B


def largest_share(shares: list[np.ndarray], length_B: np.ndarray, task_B: np.ndarray) -> int:
    """Return the tokens of the rank that has most."""
    return max(count_tokens_per_rank(length_B - PREFIX_LENGTH_T[task_B], task_B, PREFIX_LENGTH_T, shares))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 8, 65])
def test_every_row_is_dealt_once_in_equal_numbers(num_rows: int, world_size: int) -> None:
    length_B, task_B = draw_batch(num_rows, 0)
    for shares in (
        deal_by_length(num_rows, world_size),
        deal_by_task(length_B, task_B, PREFIX_LENGTH_T, world_size),
    ):
        assert len(shares) == world_size
        assert sorted(np.concatenate(shares).tolist()) == list(range(num_rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rank_tokens_count_each_shared_prefix_once() -> None:
    task_B, length_B = np.array([1, 1, 3]), np.array([30, 40, 50])
    assert count_tokens(length_B - PREFIX_LENGTH_T[task_B], task_B, PREFIX_LENGTH_T) == (5 + 15 + 25) + (
        43 + 7
    )


def test_token_changes_equal_a_recount() -> None:
    for seed in range(20):
        length_B, task_B = draw_batch(9, seed)
        tail_B, given, taken = length_B - PREFIX_LENGTH_T[task_B], np.arange(5), np.arange(5, 9)
        found = token_changes(tail_B, task_B, PREFIX_LENGTH_T, given, taken)
        for i, j in np.ndindex(found.shape):
            after = np.append(np.delete(given, i), taken[j])
            before, now = (
                count_tokens(tail_B[rows], task_B[rows], PREFIX_LENGTH_T) for rows in (given, after)
            )
            assert found[i, j] == now - before


def test_shares_are_near_the_best_of_all_divisions() -> None:
    balanced, best, by_length = [], [], []
    for seed in range(60):
        length_B, task_B = draw_batch(8, seed)
        every = [[np.array(one), np.setdiff1d(np.arange(8), one)] for one in combinations(range(8), 4)]
        best.append(min(largest_share(shares, length_B, task_B) for shares in every))
        balanced.append(largest_share(deal_by_task(length_B, task_B, PREFIX_LENGTH_T, 2), length_B, task_B))
        by_length.append(largest_share(deal_by_length(8, 2), length_B, task_B))
    assert sum(balanced) <= 1.01 * sum(best) and sum(by_length) > 1.05 * sum(best)


@pytest.mark.parametrize(("num_rows", "world_size"), [(32, 2), (128, 4), (512, 8), (96, 32)])
def test_large_batches_are_never_worse_than_dealt_by_length(num_rows: int, world_size: int) -> None:
    better = 0
    for seed in range(5):
        length_B, task_B = draw_batch(num_rows, seed)
        found = largest_share(deal_by_task(length_B, task_B, PREFIX_LENGTH_T, world_size), length_B, task_B)
        by_length = largest_share(deal_by_length(num_rows, world_size), length_B, task_B)
        assert found <= by_length
        better += found < by_length
    assert better >= 4


def test_shared_task_gives_each_rank_rows_of_all_lengths() -> None:
    length_B = np.arange(20, 60)
    shares = group_by_task(length_B, np.zeros(40, np.int64), 4)
    assert [len(share) for share in shares] == [10] * 4
    assert np.ptp([length_B[share].mean() for share in shares]) <= 3
