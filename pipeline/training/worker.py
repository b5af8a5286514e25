"""Training worker: Ray starts it, DeepSpeed joins gradients, the sampler assigns rows."""

from __future__ import annotations

import gc
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from models.files import remove_tree
from models.serialization.bundle import BundleRefusedError, write_bundle
from pipeline.config.loading import build_config
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.errors import RetryableError, translate_os_error
from pipeline.inference.bundle_description import TrainingRecord
from pipeline.inference.predictor import bundle_description
from pipeline.runtime.run_log import RunLog, logging_to
from pipeline.runtime.timing import record_seconds
from pipeline.runtime.watchdog import Watchdog
from pipeline.storage.filesystem import open_to_append
from pipeline.training.checkpoint import (
    CheckpointWriter,
    find_newest_checkpoint,
    gather_trainables,
    restore_checkpoint,
)
from pipeline.training.event_log import (
    BestEvaluation,
    EvaluationEvent,
    StartEvent,
    TrainingEvent,
    append_event,
)
from pipeline.training.step import TrainingDivergedError, WorkerState, any_rank, step_event, train_step
from pipeline.training.stop_signal import StopSignal
from pipeline.training.validation_loop import BestWeights, ValidationLoop
from pipeline.training.worker_setup import RankContext, build_worker

logger = logging.getLogger(__name__)


class StoppedError(RetryableError):
    """The driver asked the workers to stop."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that the driver passes to its workers as JSON."""

    config: dict[str, Any]  # the run's config as JSON: workers validate it with their own extensions
    fingerprint: str
    data_digest: str
    encoded_dir: Path
    bundle_dir: Path
    checkpoint_dir: Path
    event_log_path: Path
    stop_path: Path
    log: RunLog | None = None  # of the command

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {**plain, "log": self.log.to_json() if self.log else None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> WorkerSettings:
        """Build from the JSON form."""
        return cls(
            config=value["config"],
            fingerprint=value["fingerprint"],
            data_digest=value["data_digest"],
            encoded_dir=Path(value["encoded_dir"]),
            bundle_dir=Path(value["bundle_dir"]),
            checkpoint_dir=Path(value["checkpoint_dir"]),
            event_log_path=Path(value["event_log_path"]),
            stop_path=Path(value["stop_path"]),
            log=RunLog.from_json(value["log"]),
        )


def train_worker(arguments: dict[str, Any]) -> None:
    """Run one Ray Train worker.

    Args:
        arguments: "settings": JSON form of `WorkerSettings`; "requested_at_s": Unix time at which the driver
            asked for the workers.
    """
    import ray.train
    import ray.train.torch

    settings = WorkerSettings.from_json(arguments["settings"])
    # clocks of two machines differ, and may be set
    seconds = {"workers": max(0.0, time.time() - arguments["requested_at_s"])}
    ray_context = ray.train.get_context()
    config = build_config(settings.config, "the driver's config")
    torch.set_num_threads(config.training.threads_per_worker)
    rank = ray_context.get_world_rank()
    stuck = open_to_append(settings.event_log_path.with_name(f"stuck-{rank}.txt"))
    stack_traces = os.fdopen(stuck, "a", encoding="utf-8")
    with (
        logging_to(settings.log, f"rank {rank}"),
        Watchdog(stack_traces, config.training.hang_timeout_s) as watchdog,
    ):
        with record_seconds(seconds, "rows"):
            encoded = read_encoded(settings.encoded_dir, "train", config.tasks)
        context = RankContext(rank, ray_context.get_world_size(), ray.train.torch.get_device())
        worker = build_worker(config, encoded, context, seconds, watchdog)
        try:
            train(worker, settings, seconds)
        except ConnectionError:  # an OSError too, but another worker was lost
            raise
        except StoppedError:
            logger.info("stopped as asked")
            raise
        except OSError as error:
            logger.error("training failed: %s", error)
            raise translate_os_error(error) from error
        except Exception as error:
            logger.error("training failed: %s", error, exc_info=error)
            raise
        logger.info("training done")
    ray.train.report({})


def train(worker: WorkerState, settings: WorkerSettings, start_seconds: dict[str, float]) -> None:
    """Train from the newest checkpoint to the last step, then publish the bundle.

    Args:
        worker: This rank's state.
        settings: Paths and digests.
        start_seconds: Durations by phase of the start, for the event log.

    Raises:
        StoppedError: The driver asked to stop; the state is kept.
    """
    valid = read_encoded(settings.encoded_dir, "valid", worker.config.tasks)
    validation = ValidationLoop(worker, valid)
    stop = StopSignal(settings.stop_path, worker.rank)
    # shorter than the watchdog's timeout, so that a rank that waits for another does not count as hung
    wait_s = worker.config.training.hang_timeout_s / 2
    with CheckpointWriter(
        worker.engine, settings.checkpoint_dir, worker.rank, worker.world_size, wait_s
    ) as writer:
        newest = agree_on_checkpoint(settings.checkpoint_dir, worker.rank)
        worker.watchdog.heartbeat()
        step, best = restore_checkpoint(worker.engine, newest) if newest else (0, None)
        first_step = writer.saved_step = step
        log_event(worker, settings, start_event(worker, step, best, start_seconds))
        if any_rank(stop.is_requested(), worker.predictor.device):
            raise stopped_error(step)
        worker.watchdog.heartbeat()
        worker.engine.train()
        while True:
            if validation.is_due(step):  # a checkpoint of this step was written before its evaluation
                best, evaluation = evaluate(worker, validation, step, best, stop)
                if evaluation is None:
                    save_and_stop(writer, step, best)
                log_event(worker, settings, evaluation)
            if step == worker.num_steps or validation.is_patience_exhausted(best, step):
                break
            started_s = time.monotonic()
            result = train_step(worker, step, stop=stop.is_requested())
            event = step_event(worker, result, time.monotonic() - started_s)
            if step == first_step:
                # later collections skip the many objects that loading and compiling left
                gc.collect()
                gc.freeze()
            step += 1
            is_due = step % worker.config.training.checkpoint_every_steps == 0
            if is_due and step < worker.num_steps and not result.stop_requested:
                seconds = dict(event.seconds)
                with record_seconds(seconds, "checkpoint"):
                    writer.save(step, best)
                event = replace(event, seconds=seconds)
            log_event(worker, settings, event)
            if result.stop_requested:
                save_and_stop(writer, step, best)
        writer.wait()
    worker.watchdog.heartbeat()
    publish(worker, settings, step, best)


def log_event(worker: WorkerState, settings: WorkerSettings, event: TrainingEvent) -> None:
    """Append an event to the log, on rank 0."""
    if worker.rank == 0:
        append_event(settings.event_log_path, event)


def start_event(
    worker: WorkerState, step: int, best: BestWeights | None, seconds: dict[str, float]
) -> StartEvent:
    """Build the event of a start of the workers."""
    prefix_length_T = worker.prefix_length_T
    return StartEvent(
        starts_after=step,
        best=best.evaluation if best else None,
        tokens_shared=None if prefix_length_T is None else tuple(prefix_length_T.tolist()),
        seconds=seconds,
        at_s=time.time(),
    )


def evaluate(
    worker: WorkerState, validation: ValidationLoop, step: int, best: BestWeights | None, stop: StopSignal
) -> tuple[BestWeights | None, EvaluationEvent | None]:
    """Evaluate the model; return the best weights so far and the event, None if asked to stop."""
    seconds: dict[str, float] = {}
    with record_seconds(seconds, "evaluation"):
        metrics = validation.evaluate(step, stop)
        if metrics is None:
            return best, None
        is_best = metrics.is_better_than(best.evaluation if best else None)
        if is_best:
            assert metrics.macro_pr_auc is not None and metrics.macro_log_loss is not None
            evaluation = BestEvaluation(step, metrics.macro_pr_auc, metrics.macro_log_loss)
            best = BestWeights(evaluation, gather_trainables(worker.engine))
    event = EvaluationEvent(
        evaluated_after=step,
        tasks=metrics.tasks,
        macro_pr_auc=metrics.macro_pr_auc,
        macro_log_loss=metrics.macro_log_loss,
        is_best=is_best,
        seconds=seconds["evaluation"],
        at_s=time.time(),
    )
    return best, event


def save_and_stop(writer: CheckpointWriter, step: int, best: BestWeights | None) -> NoReturn:
    """Write a checkpoint, then raise StoppedError on all ranks."""
    writer.save(step, best)
    writer.wait()
    # Ray ends all workers with the first one, and rank 0 may still be publishing the checkpoint
    torch.distributed.barrier()
    raise stopped_error(step)


def stopped_error(step: int) -> StoppedError:
    """Return the error of a training that was asked to stop after `step` steps."""
    kept = f", and its state after step {step} is kept" if step else " before its first step"
    return StoppedError(f"training was stopped as asked{kept}; run the same command again to resume")


def publish(worker: WorkerState, settings: WorkerSettings, steps: int, best: BestWeights | None) -> None:
    """Write the bundle with the weights of the best evaluation, or the last ones if there is none.

    Raises:
        TrainingDivergedError: A weight is not finite.
    """
    tensors = best.tensors if best else gather_trainables(worker.engine)
    if worker.rank != 0:
        return
    record = TrainingRecord(
        fingerprint=settings.fingerprint,
        data_digest=settings.data_digest,
        steps=steps,
        rows=len(worker.encoded),
        trainable_parameters=sum(tensor.numel() for tensor in tensors.values()),
        best=asdict(best.evaluation) if best else None,
    )
    try:
        write_bundle(
            settings.bundle_dir,
            bundle_description(worker.predictor, worker.config, record),
            tensors,
            worker.predictor.backbone.folder,
        )
    except BundleRefusedError as error:
        raise TrainingDivergedError(
            f"{error}; nothing was published; lower optimizer.learning_rate"
        ) from error


def agree_on_checkpoint(root: Path, rank: int) -> Path | None:
    """Return the newest whole checkpoint as rank 0 sees it, and remove newer damaged ones.

    Storage need not show the same files to all ranks at the same time.
    """
    names: list[str | None] = [None]
    if rank == 0:
        newest, _ = find_newest_checkpoint(root)
        names = [newest.name if newest else None]
        for folder in root.glob("step-*"):
            if newest is None or folder.name > newest.name:
                remove_tree(folder)  # it would count as one of the checkpoints to keep
    torch.distributed.broadcast_object_list(names, src=0)
    return root / names[0] if names[0] else None
