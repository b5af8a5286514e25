"""Division of a batch among ranks: equal row counts, nearly equal work, as all ranks wait for the slowest.

Only packed rows are balanced by task. A GPU takes padded rows, which are dealt by length.

Shape legend: B rows of the batch, I rows of one rank, J rows of another, T tasks.
"""

import numpy as np

# swaps per rank at most; with 2, ranks of 32 rows and more were further apart than rows dealt by length
MAX_SWAPS_PER_RANK = 8

# ranks that the one with most tokens may swap with: trying all of them takes time and gains nothing
MAX_SWAP_PARTNERS = 4


def deal_by_length(num_rows: int, world_size: int) -> list[np.ndarray]:
    """Return each rank's positions among rows to be padded, shortest first.

    Neighbours in length go to different ranks.
    """
    return [np.arange(num_rows)[rank::world_size] for rank in range(world_size)]


def deal_by_task(
    length_B: np.ndarray, task_B: np.ndarray, prefix_length_T: np.ndarray, world_size: int
) -> list[np.ndarray]:
    """Return each rank's positions among rows to be packed.

    A rank processes the shared prefix of a task once if it has any of its rows. Rows of a task therefore stay
    together if that lowers the largest token count of a rank; otherwise rows are dealt by length.
    """
    tail_B = length_B - prefix_length_T[task_B]
    candidates = [
        balance_by_swaps(tail_B, task_B, prefix_length_T, group_by_task(length_B, task_B, world_size)),
        deal_by_length(len(length_B), world_size),
    ]
    return min(
        candidates, key=lambda shares: max(count_tokens_per_rank(tail_B, task_B, prefix_length_T, shares))
    )


def group_by_task(length_B: np.ndarray, task_B: np.ndarray, world_size: int) -> list[np.ndarray]:
    """Return equal shares of rows with few tasks per rank.

    A task that several ranks share gives each of them rows of all its lengths.
    """
    order = np.lexsort((length_B, task_B))
    rank_B = np.repeat(np.arange(world_size), [len(part) for part in np.array_split(order, world_size)])
    for task in np.unique(task_B):
        is_task = task_B[order] == task
        sizes = np.bincount(rank_B[is_task])
        turns = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size])
        rank_B[is_task] = rank_B[is_task][np.argsort(turns, kind="stable")]
    return [order[rank_B == rank] for rank in range(world_size)]


def balance_by_swaps(
    tail_B: np.ndarray, task_B: np.ndarray, prefix_length_T: np.ndarray, shares: list[np.ndarray]
) -> list[np.ndarray]:
    """Return the shares after swapping rows as long as the rank with most tokens gets fewer."""
    shares = [share.copy() for share in shares]
    tokens = count_tokens_per_rank(tail_B, task_B, prefix_length_T, shares)
    for _ in range(MAX_SWAPS_PER_RANK * len(shares)):
        heaviest = int(np.argmax(tokens))
        lightest = np.argsort(tokens, kind="stable")[:MAX_SWAP_PARTNERS].tolist()
        best_swap: tuple[int, int, int] | None = None
        fewest = tokens[heaviest]
        for other in [rank for rank in lightest if rank != heaviest and len(shares[rank])]:
            given, taken = shares[heaviest], shares[other]
            heaviest_IJ = tokens[heaviest] + token_changes(tail_B, task_B, prefix_length_T, given, taken)
            other_IJ = tokens[other] + token_changes(tail_B, task_B, prefix_length_T, taken, given).T
            larger_IJ = np.maximum(heaviest_IJ, other_IJ)
            if larger_IJ.min() < fewest:
                i, j = divmod(int(np.argmin(larger_IJ)), larger_IJ.shape[1])
                best_swap, fewest = (other, i, j), int(larger_IJ.min())
        if best_swap is None:
            break
        other, i, j = best_swap
        shares[heaviest][i], shares[other][j] = shares[other][j], shares[heaviest][i]
        for rank in (heaviest, other):
            tokens[rank] = count_tokens(tail_B[shares[rank]], task_B[shares[rank]], prefix_length_T)
    return shares


def count_tokens(tail_B: np.ndarray, task_B: np.ndarray, prefix_length_T: np.ndarray) -> int:
    """Return the tokens that a rank with these rows processes."""
    return int(tail_B.sum() + prefix_length_T[np.unique(task_B)].sum())


def count_tokens_per_rank(
    tail_B: np.ndarray, task_B: np.ndarray, prefix_length_T: np.ndarray, shares: list[np.ndarray]
) -> list[int]:
    """Return the tokens that each rank processes."""
    return [count_tokens(tail_B[share], task_B[share], prefix_length_T) for share in shares]


def token_changes(
    tail_B: np.ndarray,
    task_B: np.ndarray,
    prefix_length_T: np.ndarray,
    given_I: np.ndarray,
    taken_J: np.ndarray,
) -> np.ndarray:
    """Return the change in tokens (I, J) of a rank that gives row i of its own for row j of another rank."""
    count_T = np.bincount(task_B[given_I], minlength=len(prefix_length_T))
    given_task_I1, taken_task_J = task_B[given_I][:, None], task_B[taken_J]
    saved_I1 = np.where(count_T == 1, prefix_length_T, 0)[given_task_I1]
    added_J = np.where(count_T == 0, prefix_length_T, 0)[taken_task_J]
    prefix_change_IJ = np.where(given_task_I1 == taken_task_J, 0, added_J - saved_I1)
    return tail_B[taken_J] - tail_B[given_I][:, None] + prefix_change_IJ
