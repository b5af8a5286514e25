"""What one training worker does. Ray starts it, DeepSpeed joins the workers' gradients, the sampler tells each its rows.

Shape legend: B rows of the micro-batch, T tasks.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.adapters.routing import TaskShapeError
from models.bundle import write_bundle
from models.losses import row_losses, task_sums
from pipeline.batches import EncodedRows, collate
from pipeline.checkpoint import gather_trainables, newest_checkpoint, restore_checkpoint, write_checkpoint
from pipeline.config import RunConfig, build_config
from pipeline.encoded_files import read_encoded
from pipeline.errors import ConfigError, DataRefusedError, RelevanceError
from pipeline.judge import Judge, describe, fresh_judge
from pipeline.optimizer import build_optimizer, rate_share
from pipeline.sampler import Sampler
from pipeline.zero import deepspeed_config, gradient_norms

HEAD_START_ROWS = 24  # rows of a task whose mean logits its head's bias makes up for


class TrainingDivergedError(RelevanceError):
    """A loss was not finite; nothing was published."""


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

    @property
    def relevant_from_T(self) -> torch.Tensor:
        """The lowest relevant label of each task."""
        return torch.tensor([task.relevant_from for task in self.config.tasks], device=self.judge.device)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return max(1, round(self.config.training.epochs * self.sampler.batches_per_epoch))


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point inside a Ray Train worker. `settings`: config (plain), fingerprint, data_digest, and paths of what it reads and
    writes."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    config = build_config(settings["config"], "the driver's config")
    torch.set_num_threads(config.training.threads_per_worker)
    encoded = read_encoded(Path(settings["encoded_dir"]), "train", config.tasks)
    worker = build_worker(config, encoded, context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    train(worker, settings)
    ray.train.report({})


def build_worker(config: RunConfig, encoded: EncodedRows, rank: int, world_size: int, device: torch.device) -> Worker:
    """Load the model and hand it to DeepSpeed. torch.distributed is initialised already."""
    import deepspeed

    judge = fresh_judge(config, device)
    if len(encoded) == 0:
        found = f"no row of {config.accepted_dir} falls into the train split"
        raise DataRefusedError(f"{found}; add rows or lower split.valid_share and split.test_share")
    sampler = build_sampler(config, encoded, world_size)
    start_heads(judge, encoded)
    if config.training.gradient_checkpointing:
        judge.model.enable_gradient_checkpointing()
    # skip the shared-memory collective that DeepSpeed would compile for a minute on a first run: gloo does here
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=judge.model,
        model_parameters=list(judge.model.trainable_state().values()),
        optimizer=build_optimizer(judge.model, config.optimizer),
        config=deepspeed_config(config.deepspeed, config.training, config.optimizer),
    )
    return Worker(config, judge, encoded, sampler, engine, rank, world_size)


def build_sampler(config: RunConfig, encoded: EncodedRows, world_size: int) -> Sampler:
    """The run's sampler; DataRefusedError if there are fewer training rows than workers."""
    weights = [task.sampling_weight for task in config.tasks]
    training = config.training
    try:
        return Sampler(
            encoded.length_N, encoded.task_N, weights, training.batch_rows, training.task_temperature, config.seed, minimum_batch_rows=world_size
        )
    except ValueError as error:
        raise DataRefusedError(str(error)) from error


def start_heads(judge: Judge, encoded: EncodedRows) -> None:
    """Start each head at its task's label shares, measured on the training rows; its logits on the first rows of each task.

    Every rank does the same sum on the same rows, so all start equal.
    """
    rows = np.concatenate([np.flatnonzero(encoded.task_N == index)[:HEAD_START_ROWS] for index in range(len(judge.tasks))])
    most_labels = max(len(task.labels) for task in judge.tasks)
    share_TC = torch.ones(len(judge.tasks), most_labels)
    for index, task in enumerate(judge.tasks):
        counts = np.bincount(encoded.label_N[encoded.task_N == index], minlength=len(task.labels)) + 1  # none is impossible
        share_TC[index, : len(task.labels)] = torch.from_numpy(counts / counts.sum())
    batch = collate(encoded, rows, len(judge.tasks), judge.pad_id).to(judge.device)
    judge.model.start_at_label_shares(batch.input_ids_BS, batch.mask_BS, batch.task_B, share_TC.to(judge.device))


def train(worker: Worker, settings: dict[str, Any]) -> None:
    """All steps from the newest checkpoint on, then the bundle."""
    checkpoints, live_path = Path(settings["checkpoint_dir"]), Path(settings["live_path"])
    newest = newest_checkpoint(checkpoints, worker.world_size)
    first = restore_checkpoint(worker.engine, newest, worker.rank) if newest else 0
    worker.engine.module.train()
    for step in range(first, worker.num_steps):
        started_s = time.monotonic()
        share = rate_share(step, worker.num_steps, worker.config.optimizer.warmup_share)
        loss_T, weight_T, group_norms = train_step(worker, step, share)
        if worker.rank == 0:
            seconds = time.monotonic() - started_s
            append_live(live_path, live_record(worker, step, share, loss_T, weight_T, group_norms, seconds))
        if (step + 1) % worker.config.training.checkpoint_every_steps == 0 and step + 1 < worker.num_steps:
            write_checkpoint(worker.engine, checkpoints, step + 1, worker.rank)
    tensors = gather_trainables(worker.engine)
    if worker.rank == 0:
        facts = {key: settings[key] for key in ("fingerprint", "data_digest")} | {"steps": worker.num_steps, "rows": len(worker.encoded)}
        facts |= {"trainable_parameters": sum(tensor.numel() for tensor in tensors.values())}
        write_bundle(Path(settings["bundle_dir"]), describe(worker.judge, worker.config, facts), tensors, worker.judge.backbone.folder)


def train_step(worker: Worker, step: int, share: float) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """One optimizer step on the global batch of `step`; returns its loss sums and weight sums per task, and its gradient norms by group,
    all over all ranks."""
    # dropout is a function of the step, so that a resumed run drops what the uninterrupted one would have dropped
    torch.manual_seed(position_seed(worker.config.seed, step, worker.rank))
    for group in worker.engine.optimizer.param_groups:
        group["lr"] = group["peak_rate"] * share
    rows = worker.sampler.global_rows(step)
    mine = worker.sampler.rank_rows(step, worker.rank, worker.world_size)
    batch = collate(worker.encoded, mine, len(worker.config.tasks), worker.judge.pad_id).to(worker.judge.device)
    try:
        logits_BC = worker.engine(batch.input_ids_BS, batch.mask_BS, batch.task_B)
    except TaskShapeError as error:
        raise ConfigError(str(error)) from error
    loss_B = row_losses(logits_BC, batch.label_B, worker.relevant_from_T[batch.task_B])
    loss_T, weight_T = task_sums(loss_B, batch.weight_B, batch.task_B, len(worker.config.tasks))
    sums_2T = torch.stack([loss_T.detach(), weight_T])
    torch.distributed.all_reduce(sums_2T)
    if not torch.isfinite(sums_2T).all():
        raise TrainingDivergedError(
            f"the loss of step {step} is not finite (rows {', '.join(worker.encoded.row_ids_of(rows)[:8])}, ...);"
            " lower optimizer.learning_rate; nothing was published"
        )
    # DeepSpeed averages over ranks: times the world size over the batch's whole weight, that is the exact weighted mean over its rows
    total_weight = max(float(worker.encoded.weight_N[rows].sum()), 1e-12)
    worker.engine.backward(loss_T.sum() * (worker.world_size / total_weight))
    group_norms = gradient_norms(worker.engine)
    if not all(math.isfinite(norm) for norm in group_norms.values()):
        damaged = ", ".join(name for name, norm in group_norms.items() if not math.isfinite(norm))
        raise TrainingDivergedError(f"the gradient of step {step} is not finite in {damaged}; lower optimizer.learning_rate; nothing was published")
    worker.engine.step()
    loss_T_all, weight_T_all = sums_2T.cpu().double().numpy()
    return loss_T_all, weight_T_all, group_norms


def position_seed(seed: int, step: int, rank: int) -> int:
    """The seed of what is random within one rank's share of one step."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def live_record(
    worker: Worker, step: int, share: float, loss_T: np.ndarray, weight_T: np.ndarray, group_norms: dict[str, float], seconds: float
) -> dict[str, Any]:
    """One step as people follow it."""
    rows = worker.sampler.global_rows(step)
    names = [task.name for task in worker.config.tasks]
    return {
        "step": step + 1,
        "num_steps": worker.num_steps,
        "rows": len(rows),
        "loss": float(loss_T.sum() / max(weight_T.sum(), 1e-12)),
        "task_losses": {name: float(loss / weight) for name, loss, weight in zip(names, loss_T, weight_T, strict=True) if weight > 0},
        "learning_rate": worker.config.optimizer.learning_rate * share,
        "rows_per_s": len(rows) / seconds,
        "tokens_per_s": float(worker.encoded.length_N[rows].sum() / seconds),
        "gradient_norm": math.sqrt(sum(norm**2 for norm in group_norms.values())),
        "group_gradient_norms": group_norms,
    }


def append_live(path: Path, record: dict[str, Any]) -> None:
    """Add one json line to the file that the driver follows."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
