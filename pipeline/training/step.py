"""One optimizer step of one rank: passes forward and backward, exact means over all ranks, the update.

Shape legend: B rows of a pass, T tasks.
"""

from __future__ import annotations

import math
import time
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
from pipeline.inference.predictor import Predictor
from pipeline.runtime.timing import DeviceClock
from pipeline.runtime.watchdog import Watchdog
from pipeline.training.deepspeed_engine import gradient_norms
from pipeline.training.event_log import StepEvent
from pipeline.training.optimizer import learning_rate_scale
from pipeline.training.sampler import Sampler

MAX_ROWS_SHOWN = 8  # row ids in an error message

MIN_WEIGHT = 1e-12  # divisor where all rows of a batch weigh nothing


class TrainingDivergedError(RelevanceError):
    """A loss or a gradient is not finite; nothing was published."""


@dataclass(frozen=True)
class WorkerState:
    """State of one rank: model, rows, engine and counters."""

    config: RunConfig
    predictor: Predictor
    encoded: EncodedRows  # the train split
    sampler: Sampler
    engine: Any  # DeepSpeed's
    rank: int
    world_size: int
    flops_per_token: int
    flops_per_row: int  # in addition to those of its tokens
    peak_flops_per_s: float  # of this rank
    watchdog: Watchdog
    prefix_length_T: np.ndarray | None  # shared prefix of each task's rows; None: rows are padded, not packed

    @cached_property
    def relevant_from_T(self) -> torch.Tensor:
        """Lowest relevant label of each task, on the device: a copy in each pass would wait for a GPU."""
        return torch.tensor([task.relevant_from for task in self.config.tasks], device=self.predictor.device)

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return max(1, round(self.config.training.epochs * self.sampler.batches_per_epoch))


@dataclass
class StepMeter:
    """Counts, losses and clocks of the passes of a step on this rank."""

    step: int
    device: torch.device
    tokens_computed: int = 0  # padding included
    num_padding: int = 0  # tokens
    # rows of each pass and their losses, which stay on the device: reading them would wait for a GPU
    row_losses: list[tuple[np.ndarray, torch.Tensor]] = field(default_factory=list)
    clocks: dict[str, DeviceClock] = field(default_factory=dict)

    def clock(self, phase: str) -> DeviceClock:
        """Return the clock of a phase, a context that counts the time spent inside."""
        return self.clocks.setdefault(phase, DeviceClock(self.device))

    def diverged_rows(self) -> list[int]:
        """Return this rank's rows whose loss is not finite."""
        return [
            row
            for rows, loss_B in self.row_losses
            for row in rows[~torch.isfinite(loss_B).cpu().numpy()].tolist()
        ]


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step; sums are over all ranks.

    `seconds` are this rank's, by phase. "backward" includes DeepSpeed's exchange of gradients,
    "communication" is the rest of the exchange.
    """

    step: int
    rate_scale: float
    loss_T: np.ndarray  # weighted sums
    weight_T: np.ndarray
    group_norms: dict[str, float]
    stop_requested: bool
    tokens_computed: int  # padding included
    num_padding: int  # tokens
    seconds: dict[str, float]


def train_step(worker: WorkerState, step: int, stop: bool) -> StepResult:
    """Take one optimizer step on the global batch of `step`, in as many passes as the token budget requires.

    Args:
        worker: This rank's state.
        step: Step, counted from 0.
        stop: True if this rank was asked to stop; the result carries it to all ranks.

    Raises:
        TrainingDivergedError: A loss or a gradient is not finite.
        RetryableError: A file of encoded rows changed or was removed.
    """
    config, engine, device = worker.config, worker.engine, worker.predictor.device
    meter = StepMeter(step, device)
    rate_scale = learning_rate_scale(step, worker.num_steps, config.optimizer.warmup_share)
    # dropout is a function of the step, so that a resumed run drops what an uninterrupted one would have
    # dropped
    torch.manual_seed(position_seed(config.seed, step, worker.rank))
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_rate"] * rate_scale
    with meter.clock("data"):
        worker.encoded.check_files()
        batch_rows = worker.sampler.global_rows(step)
        budget = config.training.micro_batch_tokens
        parts = worker.sampler.micro_rows(
            step, worker.rank, worker.world_size, budget, worker.prefix_length_T
        )
    sums_2T = _run_passes(worker, batch_rows, parts, meter)
    with meter.clock("communication"):
        counts = (stop, meter.tokens_computed, meter.num_padding, sum(map(len, parts)))
        counts_4 = torch.tensor([float(count) for count in counts], device=sums_2T.device)
        totals = torch.cat([sums_2T.flatten(), counts_4])
        torch.distributed.all_reduce(totals)
    stop_requests, tokens, padding, num_rows = totals[-4:].tolist()
    assert num_rows == len(batch_rows), f"ranks took {num_rows:.0f} rows of a batch of {len(batch_rows)}"
    sums_2T = totals[:-4].reshape(2, -1)
    if not torch.isfinite(sums_2T).all():
        raise diverged_error(worker, step, "loss", gather_rows(meter.diverged_rows()))
    with meter.clock("communication"):
        group_norms = gradient_norms(engine)
    diverged_groups = [name for name, norm in group_norms.items() if not math.isfinite(norm)]
    if diverged_groups:
        raise diverged_error(worker, step, f"gradient of the {', '.join(diverged_groups)}", batch_rows)
    with meter.clock("optimizer"):
        engine.step()
    seconds = {phase: clock.seconds() for phase, clock in meter.clocks.items()}  # waits for a GPU
    loss_T, weight_T = sums_2T.cpu().double().numpy()
    return StepResult(
        step,
        rate_scale,
        loss_T,
        weight_T,
        group_norms,
        stop_requests > 0,
        int(tokens),
        int(padding),
        seconds,
    )


def _run_passes(
    worker: WorkerState, batch_rows: np.ndarray, parts: list[np.ndarray], meter: StepMeter
) -> torch.Tensor:
    """Run all passes of a step; return this rank's sums of losses and weights (2, T)."""
    # DeepSpeed averages over ranks: the world size over the batch's weight gives the exact weighted mean of
    # its rows
    scale = worker.world_size / max(float(worker.encoded.weights_of(batch_rows).sum()), MIN_WEIGHT)
    sums_2T = torch.zeros(2, len(worker.config.tasks), device=worker.predictor.device)
    for index, rows in enumerate(parts):
        worker.engine.set_gradient_accumulation_boundary(index + 1 == len(parts))
        if len(rows):
            loss_T, weight_T = micro_step(worker, rows, scale, meter)
        else:
            # a rank without rows takes one that weighs nothing: the others wait for it in every pass
            loss_T, weight_T = micro_step(worker, batch_rows[:1], 0.0, meter)
        sums_2T += torch.stack([loss_T, weight_T])
    return sums_2T


def micro_step(
    worker: WorkerState, rows: np.ndarray, scale: float, meter: StepMeter
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one pass forward and backward.

    Args:
        worker: This rank's state.
        rows: Row numbers of the pass.
        scale: Factor of the loss; 0: the rows weigh nothing.
        meter: Counts of the step, which this adds to.

    Returns:
        Sums of losses and of weights by task (T,).
    """
    worker.watchdog.heartbeat()
    num_tasks, device = len(worker.config.tasks), worker.predictor.device
    with meter.clock("data"):
        batch = collate(worker.encoded, rows, num_tasks, worker.predictor.pad_id, worker.prefix_length_T)
        batch = batch.to(device)
        weight_B = batch.weight_B if scale else torch.zeros_like(batch.weight_B)
    with meter.clock("forward"):
        try:
            logits_BC = worker.engine(*batch.inputs)
        except TaskShapeError as error:
            raise ConfigError(str(error)) from error
        loss_B = row_losses(logits_BC, batch.label_B, worker.relevant_from_T[batch.task_B])
        loss_T, weight_T = task_sums(loss_B, weight_B, batch.task_B, num_tasks)
    with meter.clock("backward"):
        worker.engine.backward(loss_T.sum() * scale)
    meter.row_losses.append((rows, loss_B.detach()))
    meter.tokens_computed += batch.input_ids_BS.numel()
    meter.num_padding += batch.num_padding
    return loss_T.detach(), weight_T.detach()


def step_event(worker: WorkerState, result: StepResult, step_s: float) -> StepEvent:
    """Build the event of a step that took `step_s` seconds."""
    rows = worker.sampler.global_rows(result.step)
    tokens = int(worker.encoded.length_N[rows].sum())
    flops = (result.tokens_computed - result.num_padding) * worker.flops_per_token
    flops += len(rows) * worker.flops_per_row
    task_sums_T = zip(worker.config.tasks, result.loss_T, result.weight_T, strict=True)
    return StepEvent(
        step=result.step + 1,
        num_steps=worker.num_steps,
        rows=len(rows),
        loss=float(result.loss_T.sum() / max(result.weight_T.sum(), MIN_WEIGHT)),
        task_losses={task.name: float(loss / weight) for task, loss, weight in task_sums_T if weight > 0},
        learning_rate=worker.config.optimizer.learning_rate * result.rate_scale,
        rows_per_s=len(rows) / step_s,
        tokens_per_s=tokens / step_s,
        tokens=tokens,
        tokens_computed=result.tokens_computed,
        padding=result.num_padding,
        mfu=flops / step_s / (worker.peak_flops_per_s * worker.world_size),
        at_s=time.time(),
        step_s=step_s,
        seconds={phase: round(value, 6) for phase, value in result.seconds.items()},
        gradient_norm=math.sqrt(sum(norm**2 for norm in result.group_norms.values())),
        group_gradient_norms=result.group_norms,
    )


def any_rank(value: bool, device: torch.device) -> bool:
    """Return whether `value` is true on any rank. All ranks must call it."""
    total = torch.tensor(float(value), device=device)
    torch.distributed.all_reduce(total)
    return bool(total > 0)


def gather_rows(rows: list[int]) -> np.ndarray:
    """Return the row numbers of all ranks together. All ranks must call it."""
    rows_by_rank: list[list[int] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(rows_by_rank, rows)
    return np.asarray([row for rows in rows_by_rank for row in rows or ()], dtype=np.int64)


def diverged_error(worker: WorkerState, step: int, name: str, rows: np.ndarray) -> TrainingDivergedError:
    """Return the error for a number that is not finite, naming its tasks and rows."""
    tasks = ", ".join(worker.config.tasks[task].name for task in np.unique(worker.encoded.tasks_of(rows)))
    row_ids = ", ".join(worker.encoded.row_ids_of(rows[:MAX_ROWS_SHOWN]))
    row_ids += ", ..." if len(rows) > MAX_ROWS_SHOWN else ""
    return TrainingDivergedError(
        f"the {name} of step {step + 1} is not finite (task {tasks}; rows {row_ids}); nothing was published. "
        f"Check these rows, or remove {worker.config.run_dir / 'training' / 'checkpoints'} and train again "
        "with a lower optimizer.learning_rate"
    )


def position_seed(seed: int, step: int, rank: int) -> int:
    """Return the random seed of one rank's share of one step."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
