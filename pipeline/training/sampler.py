"""Which rows make up which batch: a pure function of (seed, epoch, step, rank, world size) and the rows, so
that resuming is arithmetic.

Every row comes exactly once an epoch (or its task's quota of times), batches mix tasks, and rows of a batch
have like lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.training.rank_balancing import deal_by_length, deal_by_task

# batches whose rows are sorted by length together: enough to leave few pads, few enough to keep batches
# random
POOL_BATCHES = 32


@dataclass(frozen=True)
class BatchPlan:
    """All global batches of one epoch, as row numbers; batch b is rows[starts[b] : starts[b + 1]]."""

    rows: np.ndarray
    starts: np.ndarray

    @property
    def num_batches(self) -> int:
        return len(self.starts) - 1

    def batch(self, index: int) -> np.ndarray:
        """Row numbers of one global batch."""
        return self.rows[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class SamplerSettings:
    """How batches are drawn."""

    batch_rows: int  # of a global batch; the last one of an epoch may have fewer
    temperature: float  # 1 with equal weights: every row once an epoch
    seed: int
    max_task_rows: int | None = (
        None  # of one task an epoch, other ones each time; its share is as if it had no more
    )


class Sampler:
    """Row numbers of every micro-batch of a training run."""

    def __init__(
        self,
        length_N: np.ndarray,
        task_N: np.ndarray,
        task_weight_T: Sequence[float],
        settings: SamplerSettings,
    ) -> None:
        """`length_N` tokens and `task_N` task index of each row. A task's share of an epoch is proportional
        to weight * rows^(1/temperature). Batches do not depend on the number of ranks, so that a run can go
        on with another number.
        """
        self.length_N = length_N
        self.task_N = task_N
        self.batch_rows = settings.batch_rows
        self.seed = settings.seed
        rows_T = np.bincount(task_N, minlength=len(task_weight_T))
        self.quota_T = epoch_quotas(
            np.minimum(rows_T, settings.max_task_rows or len(task_N)), task_weight_T, settings.temperature
        )
        self.plan = lru_cache(maxsize=2)(self._plan)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches, which is the same number every epoch."""
        return len(batch_starts(int(self.quota_T.sum()), self.batch_rows)) - 1

    def global_rows(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self.plan(epoch).batch(index)

    def rank_rows(
        self, step: int, rank: int, world_size: int, beginning_T: np.ndarray | None = None
    ) -> np.ndarray:
        """The rows of that batch that fall to one rank, maybe none: so that none waits long. `beginning_T`:
        the tokens that each task's rows begin with alike, where rows are packed and go through these once;
        None where they are padded.
        """
        return self._rank_share(self.global_rows(step), rank, world_size, beginning_T)

    def micro_rows(
        self,
        step: int,
        rank: int,
        world_size: int,
        token_budget: int | None,
        beginning_T: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """One rank's rows of a step in the passes they are taken in, as many for every rank, maybe without a
        row. A pass has at most `token_budget` tokens a rank with its padding, as far as one row does; without
        a budget there is one pass.
        """
        if token_budget is None:
            return [self.rank_rows(step, rank, world_size, beginning_T)]
        rows = self.global_rows(step)
        parts = np.split(rows, pass_ends(self.length_N[rows], world_size, token_budget))
        return [self._rank_share(part, rank, world_size, beginning_T) for part in parts]

    def _rank_share(
        self, rows: np.ndarray, rank: int, world_size: int, beginning_T: np.ndarray | None
    ) -> np.ndarray:
        if beginning_T is None or world_size == 1:
            return rows[deal_by_length(len(rows), world_size)[rank]]
        return rows[deal_by_task(self.length_N[rows], self.task_N[rows], beginning_T, world_size)[rank]]

    def _plan(self, epoch: int) -> BatchPlan:
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        rows = np.concatenate(
            [self._task_rows(task, quota, random) for task, quota in enumerate(self.quota_T)]
        )
        random.shuffle(rows)
        pool = self.batch_rows * POOL_BATCHES
        # rows of one pool by length; the stable sort keeps the shuffle's order among equals
        rows = np.concatenate(
            [
                chunk[np.argsort(self.length_N[chunk], kind="stable")]
                for chunk in np.split(rows, range(pool, len(rows), pool))
            ]
        )
        starts = batch_starts(len(rows), self.batch_rows)
        order = random.permutation(len(starts) - 1)
        batches = [rows[starts[b] : starts[b + 1]] for b in order]
        return BatchPlan(np.concatenate(batches), np.concatenate([[0], np.cumsum([len(b) for b in batches])]))

    def _task_rows(self, task: int, quota: int, random: np.random.Generator) -> np.ndarray:
        """`quota` row numbers of a task: whole permutations, then the start of one more."""
        members = np.flatnonzero(self.task_N == task)
        if quota == 0:
            return members[:0]
        rounds = [random.permutation(members) for _ in range(-(-quota // len(members)))]
        return np.concatenate(rounds)[:quota]


def epoch_quotas(rows_T: np.ndarray, weight_T: Sequence[float], temperature: float) -> np.ndarray:
    """Rows of each task in an epoch (T,): as many in all as there are rows, shared by weight *
    rows^(1/temperature).
    """
    share_T = np.where(
        rows_T > 0, np.asarray(weight_T) * np.power(rows_T.astype(np.float64), 1.0 / temperature), 0.0
    )
    exact_T = share_T / share_T.sum() * rows_T.sum()
    quota_T = np.floor(exact_T + 1e-9).astype(np.int64)
    # the rows lost to rounding down go to the largest remainders, the first task winning ties
    missing = int(rows_T.sum() - quota_T.sum())
    quota_T[np.argsort(quota_T - exact_T, kind="stable")[:missing]] += 1
    return quota_T


def batch_starts(num_rows: int, batch_rows: int) -> np.ndarray:
    """Where each batch starts, and the end."""
    return np.append(np.arange(0, num_rows, batch_rows), num_rows)


def pass_ends(length_B: np.ndarray, world_size: int, token_budget: int) -> list[int]:
    """Where a batch of B rows, shortest first, is cut into passes; the end is none of these places."""
    ends, start = [], 0
    for end in range(1, len(length_B)):
        rows_a_rank = -(-(end + 1 - start) // world_size)
        if rows_a_rank * int(length_B[start : end + 1].max()) > token_budget:
            ends.append(end)
            start = end
    return ends
