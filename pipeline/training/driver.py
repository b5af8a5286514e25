"""Training from the driver's side: start the workers, follow what they write, hand back the bundle."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from models.backbone import resolve_folder
from pipeline.config.run import RunConfig
from pipeline.data.reader import find_partitions
from pipeline.encoding.encoded_cache import EncodingPlan, OnProgress, publish_encoded
from pipeline.errors import RelevanceError, RetryableError, last_line
from pipeline.runtime.ray_internals import go_without
from pipeline.storage.filesystem import remove_tree
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.event_log import LiveFollower, OnLine
from pipeline.training.metrics import TrainingGauges
from pipeline.training.plan import TrainingPlan
from pipeline.training.worker import StoppedError, train_worker
from pipeline.training.worker_failures import BUGS, OF_OTHERS, find_error, no_room, out_of_memory, stuck_files

MAX_RESTARTS = 3  # of the workers from one checkpoint, or of Ray's controller, within one command

# A worker trains in a thread beside Ray's. By itself the C library gives such a thread heaps of its own, and
# gives much of them back to the system after each pass, only to get it again page by page, cleared anew: a
# tenth of a step on a virtual machine.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}


def run_training(
    plan: TrainingPlan, on_encoded: OnProgress, on_line: OnLine, say: Callable[[str], None]
) -> None:
    """Train to the bundle, from where an interrupted training of the same plan was. `open_checkpoints` has
    been called.

    `on_encoded` gets rows encoded and rows in all, where they are not encoded yet; `on_line` each line of the
    live file as soon as it is written; `say` what a person should know. RetryableError: workers or nodes were
    lost more often than they are started again, a disk is full, or the process was told to end (SIGTERM): the
    state is kept first.
    """
    config = plan.config
    partitions, tokenizer_dir = (
        find_partitions(config.accepted_dir, config.tasks),
        resolve_folder(config.backbone),
    )
    encoding = EncodingPlan(partitions, config.split, config.tasks, config.encode, tokenizer_dir)
    encoded_dir = publish_encoded(encoding, config.run_dir, on_encoded)
    live_path, stop_path, active_path = (plan.dir / name for name in ("live.jsonl", "stop", "active"))
    live_path.write_text("")
    for path in (*plan.dir.glob("stuck-*.txt"), *plan.dir.glob("hung-*.txt")):
        path.unlink()
    stop_path.unlink(missing_ok=True)
    settings = {
        "config": config.model_dump(mode="json"),
        "fingerprint": plan.fingerprint,
        "data_digest": plan.data_digest,
        "encoded_dir": str(encoded_dir),
        "bundle_dir": str(plan.bundle_dir),
        "checkpoint_dir": str(plan.checkpoint_dir),
        "live_path": str(live_path),
        "stop_path": str(stop_path),
    }
    gauges = TrainingGauges(config.name)
    # `relevance status` looks whether it is locked, from another container too
    with (
        FileLock(active_path),
        LiveFollower(live_path, gauges.watching(on_line)),
        asked_to_stop(stop_path, say),
    ):
        fit(config, settings, plan.dir / "ray", say, gauges)
    remove_tree(plan.checkpoint_dir)
    if stop_path.exists():
        raise StoppedError(
            "the training was finished when it was asked to stop; run the same command again to go on "
            "from its bundle"
        )


@contextlib.contextmanager
def asked_to_stop(stop_path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """While inside, SIGTERM or Ctrl-C asks the workers to keep their state and stop; a second one of its kind
    ends the process as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop_path.touch()
        say(
            f"  {signal.Signals(number).name}: keeping the state after this step, then stopping; once "
            "more ends it at once"
        )

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    config: RunConfig,
    settings: dict[str, Any],
    storage_dir: Path,
    say: Callable[[str], None],
    gauges: TrainingGauges,
) -> None:
    """Run the workers to their end, starting them again where they are lost, MAX_RESTARTS times from one
    checkpoint. Errors of their code, and those meant for the user, come out as they were raised.

    The loop is ours as Ray would start workers again whatever ended them, a stop that was asked for and a
    loss that is not finite too. It ends, as checkpoints do: there is one every so many steps at most.
    """
    before: tuple[str, Path | None] | None = None
    # the newest checkpoint so far, starts anew from it, and losses of workers in all
    furthest, restarts, losses = "", 0, 0
    while True:
        try:
            run_workers(config, settings, storage_dir)
            return
        except Exception as error:
            told = (
                find_error(error, (RelevanceError,))
                or out_of_memory(error)
                or no_room(error, config)
                or find_error(error, BUGS)
            )
            if told is not None:
                raise told from error
            newest, problems = newest_checkpoint(Path(settings["checkpoint_dir"]))
            now, own = (last_line(error), newest), find_error(error, (RuntimeError,))
            if now == before and own is not None and not any(word in str(own).lower() for word in OF_OTHERS):
                # twice the same from the same place: no worker was lost, their code cannot go on
                raise own from error
            before, losses, restarts = now, losses + 1, restarts + 1
            if newest is not None and newest.name > furthest:
                furthest, restarts = newest.name, 1
            for path in stuck_files(Path(settings["live_path"]), losses):
                say(
                    f"  a worker got no further for {config.training.hang_timeout_s:g} s "
                    f"(training.hang_timeout_s); where it was is in {path}"
                )
            if restarts > MAX_RESTARTS or Path(settings["stop_path"]).exists():
                lost = (
                    f"training workers were lost ({last_line(error)}); run the same command again: it "
                    "goes on from its last checkpoint"
                )
                raise RetryableError(lost) from error
            gauges.restarted()
            say(
                f"  workers were lost ({last_line(error)}); starting them again, {restarts} of "
                f"{MAX_RESTARTS} times from one checkpoint"
            )
            for problem in problems:
                say(f"  a damaged checkpoint is passed over: {problem}")


def run_workers(config: RunConfig, settings: dict[str, Any], storage_dir: Path) -> None:
    """One start of the workers, to their end."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray resumes a run of the same name from its own snapshot; ours are the checkpoints, so Ray's state
    # starts empty every time
    remove_tree(storage_dir)
    training = config.training
    resources = {"CPU": training.threads_per_worker} | ({"GPU": 1} if training.use_gpu else {})
    failures = FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=MAX_RESTARTS)  # type: ignore[call-arg]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={**settings, "asked_at_s": time.time()},
        torch_config=TorchConfig(
            backend="nccl" if training.use_gpu else "gloo", timeout_s=math.ceil(training.hang_timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers, use_gpu=training.use_gpu, resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=config.name,
            storage_path=str(storage_dir),
            failure_config=failures,
            worker_runtime_env={"env_vars": KEEP_MEMORY},  # type: ignore[call-arg]
        ),
    )
    go_without(trainer)
    trainer.fit()
