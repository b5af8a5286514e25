"""One optimizer step of one rank: forward and backward of its rows in as many passes as fit, exact means over
all ranks, and the step.

Shape legend: B rows of a pass, T tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from models.adapters.routing import TaskShapeError
from models.losses import row_losses, task_sums
from pipeline.config.run import RunConfig
from pipeline.encoding.batches import EncodedRows, collate
from pipeline.errors import ConfigError, RelevanceError
from pipeline.inference.predictor import Judge
from pipeline.runtime.timing import DeviceClock
from pipeline.runtime.watchdog import Watch
from pipeline.training.deepspeed_engine import gradient_norms
from pipeline.training.optimizer import rate_share
from pipeline.training.sampler import Sampler


class TrainingDivergedError(RelevanceError):
    """A loss or a gradient was not finite; nothing was published."""


@dataclass(frozen=True)
class Worker:
    """One rank's share of a training run."""

    config: RunConfig
    judge: Judge
    encoded: EncodedRows
    sampler: Sampler
    engine: Any  # DeepSpeed's
    rank: int
    world_size: int
    flops_per_token: int
    flops_per_row: int  # beside those of its tokens
    peak_flops_per_s: float  # of this rank
    watch: Watch
    # tokens that each task's rows begin with, for packed rows; None: rows are padded
    beginning_T: np.ndarray | None

    @cached_property
    def relevant_from_T(self) -> torch.Tensor:
        """The lowest relevant label of each task. Made once: to bring it to a GPU anew would wait for it in
        each pass.
        """
        return torch.tensor([task.relevant_from for task in self.config.tasks], device=self.judge.device)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return max(1, round(self.config.training.epochs * self.sampler.batches_per_epoch))


@dataclass
class StepDone:
    """What came of one step: sums over all ranks, and this rank's seconds by what its device spent them on;
    "backward" is with DeepSpeed's own exchange of gradients, "communication" is what comes on top.
    """

    step: int
    rate_share: float
    device: torch.device
    loss_T: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weight_T: np.ndarray = field(default_factory=lambda: np.zeros(0))
    group_norms: dict[str, float] = field(default_factory=dict)
    stop: bool = False
    tokens_computed: int = 0  # of all ranks, padding included
    num_padding: int = 0  # of these
    clocks: dict[str, DeviceClock] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # when the step is done

    def clock(self, what: str) -> DeviceClock:
        """Count the time spent inside."""
        return self.clocks.setdefault(what, DeviceClock(self.device))


def train_step(worker: Worker, step: int, stop: bool) -> StepDone:
    """One optimizer step on the global batch of `step`, in as many passes as the token budget asks for."""
    done = StepDone(
        step, rate_share(step, worker.num_steps, worker.config.optimizer.warmup_share), worker.judge.device
    )
    # dropout is a function of the step, so that a resumed run drops what the uninterrupted one would have
    # dropped
    torch.manual_seed(position_seed(worker.config.seed, step, worker.rank))
    for group in worker.engine.optimizer.param_groups:
        group["lr"] = group["peak_rate"] * done.rate_share
    with done.clock("data"):
        rows = worker.sampler.global_rows(step)
        budget = worker.config.training.micro_batch_tokens
        parts = worker.sampler.micro_rows(step, worker.rank, worker.world_size, budget, worker.beginning_T)
    # DeepSpeed averages over ranks: times the world size over the batch's whole weight, that is the exact
    # weighted mean over its rows
    scale = worker.world_size / max(float(worker.encoded.weight_N[rows].sum()), 1e-12)
    sums_2T = torch.zeros(2, len(worker.config.tasks), device=worker.judge.device)
    losses: list[tuple[np.ndarray, torch.Tensor]] = []
    for index, mine in enumerate(parts):
        worker.engine.set_gradient_accumulation_boundary(index + 1 == len(parts))
        # a rank without a row goes along with one that weighs nothing: the others wait for it in every pass
        loss_T, weight_T = micro_step(
            worker, mine if len(mine) else rows[:1], scale if len(mine) else 0.0, done, losses
        )
        sums_2T += torch.stack([loss_T, weight_T])
    with done.clock("communication"):
        counted = (stop, done.tokens_computed, done.num_padding, sum(map(len, parts)))
        mine_too = torch.tensor([float(count) for count in counted], device=sums_2T.device)
        everything = torch.cat([sums_2T.flatten(), mine_too])
        torch.distributed.all_reduce(everything)
    stopping, tokens, padding, num_rows = everything[-4:].tolist()
    assert num_rows == len(rows), f"ranks took {num_rows:.0f} rows of a batch of {len(rows)}"
    done.stop, done.tokens_computed, done.num_padding = stopping > 0, int(tokens), int(padding)
    sums = everything[:-4].reshape(2, -1)
    if not torch.isfinite(sums).all():
        bad_rows = [
            row for mine, loss_B in losses for row in mine[~torch.isfinite(loss_B).cpu().numpy()].tolist()
        ]
        raise diverged(worker, step, "loss", gather_rows(bad_rows))
    with done.clock("communication"):
        done.group_norms = gradient_norms(worker.engine)
    if not all(math.isfinite(norm) for norm in done.group_norms.values()):
        raise diverged(
            worker,
            step,
            "gradient of the "
            + ", ".join(n for n, norm in done.group_norms.items() if not math.isfinite(norm)),
            rows,
        )
    with done.clock("optimizer"):
        worker.engine.step()
    # on a GPU this waits for the step
    done.seconds = {what: spent.seconds() for what, spent in done.clocks.items()}
    done.loss_T, done.weight_T = sums.cpu().double().numpy()
    return done


def micro_step(
    worker: Worker,
    mine: np.ndarray,
    scale: float,
    done: StepDone,
    losses: list[tuple[np.ndarray, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward of some rows; their loss and weight sums per task, nothing with a `scale` of 0.
    The rows and the loss of each are added to `losses`, on the device: to look at them here would wait for a
    GPU, which idles then while the next pass is prepared.
    """
    worker.watch.alive()
    with done.clock("data"):
        batch = collate(
            worker.encoded, mine, len(worker.config.tasks), worker.judge.pad_id, worker.beginning_T
        ).to(worker.judge.device)
        weight_B = batch.weight_B if scale else torch.zeros_like(batch.weight_B)
    with done.clock("forward"):
        try:
            logits_BC = worker.engine(*batch.inputs)
        except TaskShapeError as error:
            raise ConfigError(str(error)) from error
        loss_B = row_losses(logits_BC, batch.label_B, worker.relevant_from_T[batch.task_B])
        loss_T, weight_T = task_sums(loss_B, weight_B, batch.task_B, len(worker.config.tasks))
    with done.clock("backward"):
        worker.engine.backward(loss_T.sum() * scale)
    losses.append((mine, loss_B.detach()))
    done.tokens_computed += batch.input_ids_BS.numel()
    done.num_padding += batch.num_padding
    return loss_T.detach(), weight_T.detach()


def any_rank(mine: bool, device: torch.device) -> bool:
    """Whether any rank says so. All ranks must call it."""
    said = torch.tensor(float(mine), device=device)
    torch.distributed.all_reduce(said)
    return bool(said > 0)


def gather_rows(mine: list[int]) -> np.ndarray:
    """Row numbers of all ranks."""
    every: list[list[int] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    return np.asarray([row for rows in every for row in rows or ()], dtype=np.int64)


def diverged(worker: Worker, step: int, what: str, rows: np.ndarray) -> TrainingDivergedError:
    """What to raise where a number is not finite, naming the tasks and the rows it came from."""
    names = ", ".join(worker.config.tasks[task].name for task in np.unique(worker.encoded.task_N[rows]))
    shown = ", ".join(worker.encoded.row_ids_of(rows[:8])) + (", ..." if len(rows) > 8 else "")
    return TrainingDivergedError(
        f"the {what} of step {step + 1} is not finite (task {names}; rows {shown}); nothing was "
        "published. Look at these rows, or remove"
        f" {worker.config.run_dir / 'training' / 'checkpoints'} and train anew with a lower "
        "optimizer.learning_rate"
    )


def position_seed(seed: int, step: int, rank: int) -> int:
    """The seed of what is random within one rank's share of one step."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
