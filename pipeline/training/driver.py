"""Driver of a training: starts the workers, follows their events, restarts them when they are lost."""

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from models.backbone import resolve_folder
from models.files import remove_tree
from pipeline.config.run import RunConfig
from pipeline.config.training import TrainingConfig
from pipeline.data.reader import find_partitions
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.errors import RetryableError, summarize_error
from pipeline.runtime.progress import Progress
from pipeline.runtime.ray_internals import disable_sigint_handler
from pipeline.runtime.ray_metrics import MetricTags
from pipeline.runtime.ray_resources import format_resources, free_resources
from pipeline.runtime.run_log import RunLog
from pipeline.runtime.waiting import announce_wait, hold_lock
from pipeline.storage.filesystem import write_bytes
from pipeline.training.checkpoint import find_newest_checkpoint
from pipeline.training.checkpoint_folder import log_damaged
from pipeline.training.event_log import EventFollower, TrainingListener
from pipeline.training.metrics import TrainingGauges
from pipeline.training.plan import TrainingPlan
from pipeline.training.stop_signal import StopSignal
from pipeline.training.worker import StoppedError, WorkerSettings, train_worker
from pipeline.training.worker_failures import (
    collect_hang_reports,
    find_error,
    find_fatal_error,
    is_peer_failure,
    remove_hang_reports,
)

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # of the workers from one checkpoint, or of Ray's controller, within one command

# Settings of the C library's allocator for workers. By default a worker's thread returns its memory to the
# system after each pass and maps it again, which takes a tenth of a step on a virtual machine.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}


def run_training(
    plan: TrainingPlan, listener: TrainingListener, progress: Progress, log: RunLog | None = None
) -> None:
    """Train to the bundle, from the newest checkpoint of the same plan. `open_checkpoints` must come first.

    Args:
        plan: The training.
        listener: Receives the events of the workers from a thread of its own.
        progress: Shows the encoding of rows that are not encoded yet.
        log: The command's log, which the workers write to as well.

    Raises:
        RetryableError: Workers were lost more than MAX_RESTARTS times from one checkpoint, a disk is full, or
            the process was asked to end (SIGTERM, Ctrl-C). The state is kept.
    """
    config = plan.config
    encoded_dir = encode_rows(config, progress)
    write_bytes(plan.event_log_path, b"")
    remove_hang_reports(plan.dir)
    stop = StopSignal(plan.dir / "stop")
    stop.clear()
    settings = WorkerSettings(
        config=config.model_dump(mode="json"),
        fingerprint=plan.fingerprint,
        data_digest=plan.data_digest,
        encoded_dir=encoded_dir,
        bundle_dir=plan.bundle_dir,
        checkpoint_dir=plan.checkpoint_dir,
        event_log_path=plan.event_log_path,
        stop_path=stop.path,
        log=log,
    )
    gauges = TrainingGauges(MetricTags(config.name, log.run_id if log else ""))
    # `relevance status`, possibly in another container, checks whether `active` is locked
    with (
        hold_lock(plan.dir / "active", f"an earlier training in {plan.dir} to end"),
        EventFollower(plan.event_log_path, [gauges, listener]),
        stop_on_signals(stop),
    ):
        train_with_restarts(settings, config.training, plan.dir, gauges)
    remove_tree(plan.checkpoint_dir)
    if stop.is_requested():
        raise StoppedError(
            "training was finished when it was asked to stop; run the same command again to continue from "
            "its bundle"
        )


def encode_rows(config: RunConfig, progress: Progress) -> Path:
    """Return the folder of the encoded rows, which are encoded first unless that was done."""
    plan = EncodingPlan(
        find_partitions(config.accepted_dir, config.tasks),
        config.split,
        config.tasks,
        config.encode,
        resolve_folder(config.backbone),
    )
    return publish_encoded(plan, config.run_dir, progress)


@contextlib.contextmanager
def stop_on_signals(stop: StopSignal) -> Iterator[None]:
    """On SIGTERM or Ctrl-C, ask the workers to save their state and stop.

    A second signal of the same kind has its usual effect.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def request_stop(number: int, _: object) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        stop.request()
        logger.info(
            f"  {signal.Signals(number).name}: stopping after this step, the state is kept; the same signal "
            "again ends the command at once"
        )

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class LossCounter:
    """Counts how often workers were lost, in all and since the newest checkpoint."""

    def __init__(self) -> None:
        self.losses = 0
        self.restarts = 0  # from the furthest checkpoint
        self._furthest = ""
        self._previous: tuple[str, Path | None] | None = None

    def is_repeated(self, error: Exception, newest: Path | None) -> bool:
        """Return True if the workers were lost to the same error from the same checkpoint the last time."""
        return (summarize_error(error), newest) == self._previous

    def add(self, error: Exception, newest: Path | None) -> None:
        """Count a loss."""
        self._previous = (summarize_error(error), newest)
        self.losses += 1
        self.restarts += 1
        if newest is not None and newest.name > self._furthest:
            self._furthest, self.restarts = newest.name, 1


def train_with_restarts(
    settings: WorkerSettings, training: TrainingConfig, training_dir: Path, gauges: TrainingGauges
) -> None:
    """Run the workers to their end; start lost ones again, MAX_RESTARTS times from one checkpoint.

    Ray's own restarts are off: they would also follow a requested stop and a loss that is not finite. The
    loop ends because every checkpoint is further than the one before.

    Raises:
        RelevanceError: As the workers raised it, or RetryableError if they were lost too often.
        Exception: An error of the workers' own code, as they raised it.
    """
    counter = LossCounter()
    while True:
        try:
            run_workers(settings, training, training_dir / "ray")
            return
        except Exception as error:
            fatal_error = find_fatal_error(error, training)
            if fatal_error is not None:
                raise fatal_error from error
            newest, problems = find_newest_checkpoint(settings.checkpoint_dir)
            worker_error = find_error(error, (RuntimeError,))
            is_repeated = counter.is_repeated(error, newest)
            if is_repeated and worker_error is not None and not is_peer_failure(worker_error):
                raise worker_error from error  # no worker was lost: their code cannot continue
            counter.add(error, newest)
            for path in collect_hang_reports(training_dir, counter.losses):
                logger.warning(
                    f"  a worker made no progress for {training.hang_timeout_s:g} s "
                    f"(training.hang_timeout_s); its stack traces are in {path}"
                )
            reason = summarize_error(error)
            if counter.restarts > MAX_RESTARTS or StopSignal(settings.stop_path).is_requested():
                raise RetryableError(
                    f"training workers were lost ({reason}); run the same command again: it resumes from the "
                    "last checkpoint"
                ) from error
            gauges.count_restart()
            logger.warning(
                f"  workers were lost ({reason}); restarting them, {counter.restarts} of {MAX_RESTARTS} "
                "times from one checkpoint"
            )
            log_damaged(problems)


def run_workers(settings: WorkerSettings, training: TrainingConfig, ray_dir: Path) -> None:
    """Start the workers once and wait until they end."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray resumes a run of the same name from its own snapshot; resuming is the checkpoints' task
    remove_tree(ray_dir)
    resources = {"CPU": training.threads_per_worker} | ({"GPU": 1} if training.use_gpu else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings.to_json(), "requested_at_s": time.time()},
        torch_config=TorchConfig(
            backend="nccl" if training.use_gpu else "gloo", timeout_s=math.ceil(training.hang_timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers, use_gpu=training.use_gpu, resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=settings.config["name"],
            storage_path=str(ray_dir),
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,  # type: ignore[call-arg]
                controller_failure_limit=MAX_RESTARTS,
            ),
            worker_runtime_env={"env_vars": ALLOCATOR_ENVIRONMENT},  # type: ignore[call-arg]
        ),
    )
    disable_sigint_handler(trainer)
    event_log = settings.event_log_path
    size = event_log.stat().st_size
    workers = f"Ray to start {training.num_workers} training workers of {format_resources(resources)}"
    with announce_wait(
        lambda: f"{workers}; the cluster has {format_resources(free_resources())} free",
        is_over=lambda: event_log.stat().st_size > size,
    ):
        trainer.fit()
