"""Row numbers of every batch, a pure function of (seed, epoch, step, rank, world size).

Resuming is therefore arithmetic. Every row comes exactly once an epoch, or as often as its task's quota
says. Batches mix tasks, and rows of a batch have similar lengths.

Shape legend: N rows of the split, B rows of a batch, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.training.rank_balancing import deal_by_length, deal_by_task

# batches whose rows are sorted by length together: more leave less padding, fewer keep batches more random
POOL_BATCHES = 32

BLOCK_ROWS = 1 << 20  # of task indices read at a time, which bounds copies of them


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of one epoch: batch b is rows[starts[order[b]] : starts[order[b] + 1]]."""

    epoch: int
    rows: np.ndarray  # 4 bytes each where row numbers fit
    starts: np.ndarray
    order: np.ndarray

    def batch(self, index: int) -> np.ndarray:
        """Return the row numbers of one global batch, int64."""
        place = self.order[index]
        return self.rows[self.starts[place] : self.starts[place + 1]].astype(np.int64)


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
        blocks = (task_N[start : start + BLOCK_ROWS] for start in range(0, len(task_N), BLOCK_ROWS))
        counts = [np.bincount(block, minlength=len(task_weight_T)) for block in blocks]
        self.rows_T = np.sum([np.zeros(len(task_weight_T), np.int64), *counts], axis=0)
        self.quota_T = epoch_quotas(
            np.minimum(self.rows_T, settings.max_task_rows or len(task_N)),
            task_weight_T,
            settings.temperature,
        )
        self._plan: BatchPlan | None = None  # of the epoch that was used last

    @property
    def batches_per_epoch(self) -> int:
        """Number of global batches in each epoch."""
        return len(batch_starts(int(self.quota_T.sum()), self.batch_rows)) - 1

    def global_rows(self, step: int) -> np.ndarray:
        """Return the row numbers of a step's global batch; steps count from 0 over all epochs."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if self._plan is None or self._plan.epoch != epoch:
            self._plan = None  # two plans at a time would double the memory
            self._plan = self._build_plan(epoch)
        return self._plan.batch(index)

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

    def _build_plan(self, epoch: int) -> BatchPlan:
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        rows = np.empty(int(self.quota_T.sum()), np.int32 if len(self.task_N) < 2**31 else np.int64)
        parts = np.split(rows, np.cumsum(self.quota_T)[:-1])
        for task, part in enumerate(parts):
            self._draw_task_rows(task, part, random)
        random.shuffle(rows)
        # sorted by length within a pool; the stable sort keeps the random order among equals
        pool = self.batch_rows * POOL_BATCHES
        for start in range(0, len(rows), pool):
            chunk = rows[start : start + pool]
            chunk[:] = chunk[np.argsort(self.length_N[chunk], kind="stable")]
        starts = batch_starts(len(rows), self.batch_rows)
        return BatchPlan(epoch, rows, starts, random.permutation(len(starts) - 1))

    def _draw_task_rows(self, task: int, out: np.ndarray, random: np.random.Generator) -> None:
        """Fill `out` with row numbers of a task: whole permutations, then the start of another."""
        num_rows = int(self.rows_T[task])
        for start in range(0, len(out), num_rows or 1):
            part = out[start : start + num_rows]
            # shuffled in place where the whole permutation is used
            permutation = part if len(part) == num_rows else np.empty(num_rows, out.dtype)
            self._write_members(task, permutation)
            random.shuffle(permutation)
            part[:] = permutation[: len(part)]

    def _write_members(self, task: int, out: np.ndarray) -> None:
        """Write all row numbers of a task in their order."""
        position = 0
        for start in range(0, len(self.task_N), BLOCK_ROWS):
            members = np.flatnonzero(self.task_N[start : start + BLOCK_ROWS] == task)
            out[position : position + len(members)] = members + start
            position += len(members)


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
