"""Group rows by the tokens they begin with.

Shape legend: N rows, U rows that differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SHARED_TOKENS = 8  # of a group's beginning; reading a shorter one by itself costs as much as it saves


@dataclass(frozen=True)
class Group:
    """Rows with one beginning."""

    rows: list[int]  # numbers among the rows that differ
    shared: int  # tokens they all begin with


def distinct(id_lists: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """(rows that differ, (N,) which of them each row is)."""
    number: dict[bytes, int] = {}
    first_N = np.array([number.setdefault(ids.tobytes(), len(number)) for ids in id_lists], dtype=np.int64)
    _, firsts = np.unique(first_N, return_index=True)
    return [id_lists[row] for row in firsts], first_N


def rows_of_each(first_N: np.ndarray) -> list[np.ndarray]:
    """Of each row that differs, the numbers of the rows that it stands for."""
    return (
        np.split(np.argsort(first_N, kind="stable"), np.cumsum(np.bincount(first_N))[:-1])
        if len(first_N)
        else []
    )


def find_groups(ids_U: Sequence[np.ndarray]) -> tuple[int, list[Group]]:
    """(tokens that all rows begin with, the rows in groups that begin alike by more than that). No beginning
    is a whole row.

    Neighbours in the rows' sorted order go together unless that would cut by more than a quarter what the
    group shares, or what the row shares with the one after it.
    """
    order = sorted(range(len(ids_U)), key=lambda row: ids_U[row].astype(">i4").tobytes())
    rows = [ids_U[row] for row in order]
    common = min(same_beginning(rows[0], rows[-1]), min(map(len, rows)) - 1)
    # beyond what all share, with the row before
    alike = [
        0,
        *(min(same_beginning(a, b), len(a) - 1, len(b) - 1) - common for a, b in itertools.pairwise(rows)),
        0,
    ]
    groups, members, shared = [], [order[0]], len(rows[0]) - 1 - common
    for position in range(1, len(rows)):
        together = min(alike[position], shared)
        most = max(alike[position + 1], shared if len(members) > 1 else 0)
        if together >= MIN_SHARED_TOKENS and 4 * together >= 3 * most:
            members.append(order[position])
            shared = together
        else:
            groups.append(Group(members, common + shared))
            members, shared = [order[position]], len(rows[position]) - 1 - common
    return common, [*groups, Group(members, common + shared)]


def same_beginning(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two rows begin with alike."""
    length = min(len(one), len(other))
    unlike = np.flatnonzero(one[:length] != other[:length])
    return int(unlike[0]) if len(unlike) else length
