"""What one training worker does. Ray starts it, DeepSpeed joins the workers' gradients, the sampler tells
each its rows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from models.serialization.bundle import BundleRefusedError, write_bundle
from pipeline.config.loading import build_config
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.errors import RetryableError
from pipeline.inference.predictor import describe
from pipeline.runtime.timing import clock
from pipeline.runtime.watchdog import Watch
from pipeline.storage.filesystem import remove_tree
from pipeline.training.checkpoint import (
    CheckpointWriter,
    gather_trainables,
    newest_checkpoint,
    restore_checkpoint,
)
from pipeline.training.event_log import append_live, live_record
from pipeline.training.step import TrainingDivergedError, Worker, any_rank, train_step
from pipeline.training.validation_loop import Best, Interim, better
from pipeline.training.worker_setup import RankPlace, build_worker


class StoppedError(RetryableError):
    """The driver asked the workers to stop."""


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point inside a Ray Train worker. `settings`: config (plain), fingerprint, data_digest,
    asked_at_s, and paths of what it reads and writes.
    """
    import ray.train
    import ray.train.torch

    seconds = {"workers": time.time() - settings["asked_at_s"]}
    context = ray.train.get_context()
    config = build_config(settings["config"], "the driver's config")
    torch.set_num_threads(config.training.threads_per_worker)
    rank = context.get_world_rank()
    stuck = Path(settings["live_path"]).with_name(f"stuck-{rank}.txt").open("a", encoding="utf-8")
    with Watch(stuck, config.training.hang_timeout_s) as watch:
        with clock(seconds, "rows"):
            encoded = read_encoded(Path(settings["encoded_dir"]), "train", config.tasks)
        place = RankPlace(rank, context.get_world_size(), ray.train.torch.get_device())
        worker = build_worker(config, encoded, place, seconds, watch)
        try:
            train(worker, settings, seconds)
        except ConnectionError:  # another worker is gone
            raise
        except OSError as error:
            raise RetryableError(
                f"{error}; free space or permissions are the usual causes; then run the same command again"
            ) from error
    ray.train.report({})


def train(worker: Worker, settings: dict[str, Any], seconds: dict[str, float]) -> None:
    """All steps from the newest checkpoint on, then the bundle. StoppedError: the driver asked to stop; the
    state is kept. `seconds` is what the start took.
    """
    checkpoints, live_path, stop_path = (
        Path(settings[name]) for name in ("checkpoint_dir", "live_path", "stop_path")
    )
    interim = Interim(worker, read_encoded(Path(settings["encoded_dir"]), "valid", worker.config.tasks))

    def asked() -> bool:
        return worker.rank == 0 and stop_path.exists()

    def tell(record: dict[str, Any]) -> None:
        if worker.rank == 0:
            append_live(live_path, record)

    # or the watch would take a rank that waits for another for one that hangs
    wait_s = worker.config.training.hang_timeout_s / 2
    with CheckpointWriter(worker.engine, checkpoints, worker.rank, worker.world_size, wait_s) as writer:
        newest = agreed_checkpoint(checkpoints, worker.rank)
        worker.watch.alive()
        step, best = restore_checkpoint(worker.engine, newest) if newest else (0, None)
        starts_after = writer.kept_step = step
        tell(start_record(worker, step, best, seconds))
        if any_rank(asked(), worker.judge.device):
            raise stopped(step)
        worker.watch.alive()
        worker.engine.train()
        while True:
            if interim.due(step):  # a checkpoint is of before its evaluation
                best, figures = evaluate(worker, interim, step, best, asked)
                if figures is None:
                    keep_and_stop(writer, step, best)
                else:
                    tell(figures)
            if step == worker.num_steps or interim.exhausted(best, step):
                break
            started_s = time.monotonic()
            done = train_step(worker, step, stop=asked())
            record = live_record(worker, done, time.monotonic() - started_s)
            # what loading and compiling left is looked through once, and not between later steps again
            if step == starts_after:
                gc.collect()
                gc.freeze()
            step += 1
            is_due = step % worker.config.training.checkpoint_every_steps == 0
            if is_due and step < worker.num_steps and not done.stop:
                with clock(record["seconds"], "checkpoint"):
                    writer.save(step, best)
            tell(record)
            if done.stop:
                keep_and_stop(writer, step, best)
        writer.wait()
    worker.watch.alive()
    publish(worker, settings, step, best)


def start_record(worker: Worker, step: int, best: Best | None, seconds: dict[str, float]) -> dict[str, Any]:
    """The line of the live file that a start of the workers writes."""
    return {
        "starts_after": step,
        "best": best.facts() if best else None,
        "tokens_shared": None if worker.beginning_T is None else worker.beginning_T.tolist(),
        "seconds": seconds,
        "at_s": time.time(),
    }


def evaluate(
    worker: Worker, interim: Interim, step: int, best: Best | None, asked: Callable[[], bool]
) -> tuple[Best | None, dict[str, Any] | None]:
    """(the best evaluation with this one, this one's figures); no figures where `asked` says on some rank
    that it is to stop.
    """
    seconds: dict[str, float] = {}
    with clock(seconds, "evaluation"):
        figures = interim.evaluate(step, asked)
        if figures is None:
            return best, None
        is_best = better(figures, best)
        if is_best:
            best = Best(
                step, figures["macro_pr_auc"], figures["macro_log_loss"], gather_trainables(worker.engine)
            )
    return best, {**figures, "is_best": is_best, "seconds": seconds["evaluation"], "at_s": time.time()}


def keep_and_stop(writer: CheckpointWriter, step: int, best: Best | None) -> NoReturn:
    """Write the state down, then StoppedError on all ranks."""
    writer.save(step, best)
    writer.wait()
    # the first rank that ends would have Ray end the one that is still publishing the checkpoint
    torch.distributed.barrier()
    raise stopped(step)


def stopped(step: int) -> StoppedError:
    """The end of a training that was asked to stop."""
    kept = f", and its state after step {step} is kept" if step else " before its first step"
    return StoppedError(f"training was stopped as asked{kept}; run the same command again to go on")


def publish(worker: Worker, settings: dict[str, Any], steps: int, best: Best | None) -> None:
    """Write the bundle: the weights of the best evaluation, or the last ones where the valid split could tell
    nothing.
    """
    tensors = best.tensors if best else gather_trainables(worker.engine)
    if worker.rank == 0:
        facts = {key: settings[key] for key in ("fingerprint", "data_digest")} | {
            "steps": steps,
            "rows": len(worker.encoded),
        }
        facts |= {
            "trainable_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "best": best.facts() if best else None,
        }
        try:
            write_bundle(
                Path(settings["bundle_dir"]),
                describe(worker.judge, worker.config, facts),
                tensors,
                worker.judge.backbone.folder,
            )
        except BundleRefusedError as error:
            raise TrainingDivergedError(
                f"{error}; lower optimizer.learning_rate; nothing was published"
            ) from error


def agreed_checkpoint(root: Path, rank: int) -> Path | None:
    """The newest whole checkpoint as rank 0 sees it: storage need not show all ranks the same at the same
    time.
    """
    names: list[str | None] = [None]
    if rank == 0:
        newest, _ = newest_checkpoint(root)
        names = [newest.name if newest else None]
        for damaged in root.glob("step-*"):
            if newest is None or damaged.name > newest.name:
                remove_tree(damaged)  # or it would count as one of those that are kept
    torch.distributed.broadcast_object_list(names, src=0)
    return root / names[0] if names[0] else None
