"""Groups of rows that begin with the same tokens.

Shape legend: N rows, U distinct rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_PREFIX_TOKENS = 8  # of a group; encoding a shorter prefix by itself costs as much as it saves


@dataclass(frozen=True)
class PrefixGroup:
    """Rows with one prefix."""

    rows: list[int]  # numbers among the distinct rows
    prefix_length: int  # tokens


def find_distinct(id_lists: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the U distinct rows and, for each row, the number of the distinct row that equals it (N,)."""
    number: dict[bytes, int] = {}
    distinct_N = np.array([number.setdefault(ids.tobytes(), len(number)) for ids in id_lists], dtype=np.int64)
    _, first_U = np.unique(distinct_N, return_index=True)
    return [id_lists[row] for row in first_U], distinct_N


def rows_by_distinct(distinct_N: np.ndarray) -> list[np.ndarray]:
    """Return the row numbers that each distinct row stands for."""
    if not len(distinct_N):
        return []
    ends = np.cumsum(np.bincount(distinct_N))[:-1]
    return np.split(np.argsort(distinct_N, kind="stable"), ends)


def group_by_prefix(ids_U: Sequence[np.ndarray]) -> tuple[int, list[PrefixGroup]]:
    """Group rows that share more than the prefix common to all. A prefix is shorter than its rows.

    Neighbors in sorted order join one group, unless that would shorten by more than a quarter either the
    group's prefix or the prefix that the row shares with its next neighbor.

    Returns:
        The length of the prefix that all rows share, and the groups; each row is in one.
    """
    order = sorted(range(len(ids_U)), key=lambda row: ids_U[row].astype(">i4").tobytes())
    rows = [ids_U[row] for row in order]
    common = min(common_prefix_length(rows[0], rows[-1]), min(map(len, rows)) - 1)
    # tokens beyond `common` that a row shares with the one before it; 0 at both ends
    shared_with_previous = [0]
    for a, b in itertools.pairwise(rows):
        shared_with_previous.append(min(common_prefix_length(a, b), len(a) - 1, len(b) - 1) - common)
    shared_with_previous.append(0)

    groups: list[PrefixGroup] = []
    members, shared = [order[0]], len(rows[0]) - 1 - common
    for position in range(1, len(rows)):
        if_joined = min(shared_with_previous[position], shared)
        if_apart = max(shared_with_previous[position + 1], shared if len(members) > 1 else 0)
        if if_joined >= MIN_PREFIX_TOKENS and 4 * if_joined >= 3 * if_apart:
            members.append(order[position])
            shared = if_joined
        else:
            groups.append(PrefixGroup(members, common + shared))
            members, shared = [order[position]], len(rows[position]) - 1 - common
    return common, [*groups, PrefixGroup(members, common + shared)]


def common_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix of two rows."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
