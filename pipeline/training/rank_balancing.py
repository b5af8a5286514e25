"""Which rank takes which rows of a batch: as many rows each, and as near to equal work as may be, since all
wait for the last one.

Shape legend: B rows of the batch, I rows of one rank, J rows of another, T tasks.
"""

import numpy as np

# tried times the number of ranks, at most; with 2, ranks of 32 rows and more were further apart than rows
# dealt by length
SWAPS = 8

# ranks that the one with most tokens may swap with: with all of them dealing takes time and gains nothing
LIGHTEST = 4


def deal_by_length(num_rows: int, world_size: int) -> list[np.ndarray]:
    """Each rank's places among rows that are to be padded, shortest first: neighbours in length go to
    different ranks.
    """
    return [np.arange(num_rows)[rank::world_size] for rank in range(world_size)]


def deal_by_task(
    length_B: np.ndarray, task_B: np.ndarray, beginning_T: np.ndarray, world_size: int
) -> list[np.ndarray]:
    """Each rank's places among rows that are to lie end to end. Their first `beginning_T` tokens are alike in
    all of a task's rows, and a rank goes through these once if it has any of them. So rows of a task stay
    together as far as that takes tokens from the rank that has most; where it is no gain they are dealt by
    length.
    """
    tail_B = length_B - beginning_T[task_B]
    dealt = [
        swapped(tail_B, task_B, beginning_T, together(length_B, task_B, world_size)),
        deal_by_length(len(length_B), world_size),
    ]
    return min(dealt, key=lambda shares: max(tokens_of_ranks(tail_B, task_B, beginning_T, shares)))


def together(length_B: np.ndarray, task_B: np.ndarray, world_size: int) -> list[np.ndarray]:
    """Few tasks a rank: rows in the order of their tasks, cut into equal numbers. Of a task that several
    share each gets rows of all lengths.
    """
    order = np.lexsort((length_B, task_B))
    rank_B = np.repeat(np.arange(world_size), [len(part) for part in np.array_split(order, world_size)])
    for task in np.unique(task_B):
        of_task = task_B[order] == task
        sizes = np.bincount(rank_B[of_task])
        turns = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size])
        rank_B[of_task] = rank_B[of_task][np.argsort(turns, kind="stable")]
    return [order[rank_B == rank] for rank in range(world_size)]


def swapped(
    tail_B: np.ndarray, task_B: np.ndarray, beginning_T: np.ndarray, shares: list[np.ndarray]
) -> list[np.ndarray]:
    """The same with rows swapped as long as the rank with most tokens gets fewer."""
    shares = [share.copy() for share in shares]
    tokens = tokens_of_ranks(tail_B, task_B, beginning_T, shares)
    for _ in range(SWAPS * len(shares)):
        most = int(np.argmax(tokens))
        found: tuple[int, int, int] | None = None
        fewest = tokens[most]
        for other in [
            rank
            for rank in np.argsort(tokens, kind="stable")[:LIGHTEST].tolist()
            if rank != most and len(shares[rank])
        ]:
            mine_IJ = tokens[most] + changes(tail_B, task_B, beginning_T, shares[most], shares[other])
            theirs_IJ = tokens[other] + changes(tail_B, task_B, beginning_T, shares[other], shares[most]).T
            larger_IJ = np.maximum(mine_IJ, theirs_IJ)
            if larger_IJ.min() < fewest:
                mine, theirs = divmod(int(np.argmin(larger_IJ)), larger_IJ.shape[1])
                found, fewest = (other, mine, theirs), int(larger_IJ.min())
        if found is None:
            break
        other, mine, theirs = found
        shares[most][mine], shares[other][theirs] = shares[other][theirs], shares[most][mine]
        for rank in (most, other):
            tokens[rank] = tokens_of(tail_B[shares[rank]], task_B[shares[rank]], beginning_T)
    return shares


def tokens_of(tail_B: np.ndarray, task_B: np.ndarray, beginning_T: np.ndarray) -> int:
    """What a rank goes through that takes these rows."""
    return int(tail_B.sum() + beginning_T[np.unique(task_B)].sum())


def tokens_of_ranks(
    tail_B: np.ndarray, task_B: np.ndarray, beginning_T: np.ndarray, shares: list[np.ndarray]
) -> list[int]:
    """What each rank goes through."""
    return [tokens_of(tail_B[share], task_B[share], beginning_T) for share in shares]


def changes(
    tail_B: np.ndarray, task_B: np.ndarray, beginning_T: np.ndarray, given_I: np.ndarray, taken_J: np.ndarray
) -> np.ndarray:
    """(I, J) tokens that a rank of rows `given_I` goes through more if it gives one of them away for one of
    `taken_J`.
    """
    count_T = np.bincount(task_B[given_I], minlength=len(beginning_T))
    without_I1, with_J = task_B[given_I][:, None], task_B[taken_J]
    saved_I1 = np.where(count_T == 1, beginning_T, 0)[without_I1]
    added_J = np.where(count_T == 0, beginning_T, 0)[with_J]
    return tail_B[taken_J] - tail_B[given_I][:, None] + np.where(without_I1 == with_J, 0, added_J - saved_I1)
