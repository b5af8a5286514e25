"""Row numbers of every batch, a pure function of (seed, epoch, step, rank, world size).

Resuming is therefore arithmetic. Every row comes exactly once an epoch, or as often as its task's quota
says. Batches mix tasks, and rows of a batch have similar lengths.

Shape legend: N rows of the split, B rows of a batch, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.training.rank_balancing import deal_by_length, deal_by_task

# batches whose rows are sorted by length together: more leave less padding, fewer keep batches more random
POOL_BATCHES = 32


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of one epoch: batch b is rows[starts[b] : starts[b + 1]]."""

    rows: np.ndarray
    starts: np.ndarray

    def batch(self, index: int) -> np.ndarray:
        """Return the row numbers of one global batch."""
        return self.rows[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class SamplerSettings:
    """Batch size, mixing of tasks and seed of a sampler."""

    batch_rows: int  # of a global batch; the last batch of an epoch may have fewer
    temperature: float  # 1 with equal weights: every row once an epoch
    seed: int
    # most rows of one task in an epoch, drawn anew each epoch; its share is computed from that number
    max_task_rows: int | None = None


class Sampler:
    """Row numbers of every micro-batch of a training run."""

    def __init__(
        self,
        length_N: np.ndarray,
        task_N: np.ndarray,
        task_weight_T: Sequence[float],
        settings: SamplerSettings,
    ) -> None:
        """Compute the tasks' quotas.

        A task's share of an epoch is proportional to weight * rows^(1/temperature). Global batches do not
        depend on the number of ranks, so a run can resume with another number.

        Args:
            length_N: Tokens of each row.
            task_N: Task index of each row.
            task_weight_T: Sampling weight of each task.
            settings: Batch size, temperature and seed.
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
        """Number of global batches in each epoch."""
        return len(batch_starts(int(self.quota_T.sum()), self.batch_rows)) - 1

    def global_rows(self, step: int) -> np.ndarray:
        """Return the row numbers of a step's global batch; steps count from 0 over all epochs."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self.plan(epoch).batch(index)

    def rank_rows(
        self, step: int, rank: int, world_size: int, prefix_length_T: np.ndarray | None = None
    ) -> np.ndarray:
        """Return one rank's rows of a step's global batch, possibly none.

        Args:
            step: Step, counted from 0 over all epochs.
            rank: Rank of the worker.
            world_size: Number of ranks.
            prefix_length_T: Tokens that all rows of each task begin with, which a packed pass processes once;
                None where rows are padded.
        """
        return self._rank_share(self.global_rows(step), rank, world_size, prefix_length_T)

    def micro_rows(
        self,
        step: int,
        rank: int,
        world_size: int,
        token_budget: int | None,
        prefix_length_T: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Return one rank's rows of a step, split into forward passes.

        Every rank gets the same number of passes; some may be without a row. A pass has at most
        `token_budget` tokens per rank, padding included, or a single row. Without a budget there is one pass.
        """
        if token_budget is None:
            return [self.rank_rows(step, rank, world_size, prefix_length_T)]
        rows = self.global_rows(step)
        parts = np.split(rows, pass_boundaries(self.length_N[rows], world_size, token_budget))
        return [self._rank_share(part, rank, world_size, prefix_length_T) for part in parts]

    def _rank_share(
        self, rows: np.ndarray, rank: int, world_size: int, prefix_length_T: np.ndarray | None
    ) -> np.ndarray:
        if prefix_length_T is None or world_size == 1:
            shares = deal_by_length(len(rows), world_size)
        else:
            shares = deal_by_task(self.length_N[rows], self.task_N[rows], prefix_length_T, world_size)
        return rows[shares[rank]]

    def _plan(self, epoch: int) -> BatchPlan:
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        rows = np.concatenate(
            [self._task_rows(task, quota, random) for task, quota in enumerate(self.quota_T)]
        )
        random.shuffle(rows)
        pool = self.batch_rows * POOL_BATCHES
        # sorted by length within a pool; the stable sort keeps the random order among equals
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
        """Return `quota` row numbers of a task: whole permutations, then the start of another."""
        members = np.flatnonzero(self.task_N == task)
        if quota == 0:
            return members[:0]
        rounds = [random.permutation(members) for _ in range(-(-quota // len(members)))]
        return np.concatenate(rounds)[:quota]


def epoch_quotas(rows_T: np.ndarray, weight_T: Sequence[float], temperature: float) -> np.ndarray:
    """Return the rows of each task in an epoch (T,).

    The total equals the number of rows; shares are proportional to weight * rows^(1/temperature).
    """
    share_T = np.where(
        rows_T > 0, np.asarray(weight_T) * np.power(rows_T.astype(np.float64), 1.0 / temperature), 0.0
    )
    exact_T = share_T / share_T.sum() * rows_T.sum()
    quota_T = np.floor(exact_T + 1e-9).astype(np.int64)
    # rows lost to rounding down go to the largest remainders; the first task wins ties
    missing = int(rows_T.sum() - quota_T.sum())
    quota_T[np.argsort(quota_T - exact_T, kind="stable")[:missing]] += 1
    return quota_T


def batch_starts(num_rows: int, batch_rows: int) -> np.ndarray:
    """Return the start of each batch, and the end of the last."""
    return np.append(np.arange(0, num_rows, batch_rows), num_rows)


def pass_boundaries(length_B: np.ndarray, world_size: int, token_budget: int) -> list[int]:
    """Return the positions that split a batch, shortest row first, into passes; the end is not included."""
    boundaries, start = [], 0
    for end in range(1, len(length_B)):
        rows_per_rank = -(-(end + 1 - start) // world_size)
        if rows_per_rank * int(length_B[start : end + 1].max()) > token_budget:
            boundaries.append(end)
            start = end
    return boundaries
