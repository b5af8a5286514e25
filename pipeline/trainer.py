"""Training from the driver's side: start the workers, follow what they write, hand back the bundle."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from models.backbone import BackboneUnavailableError, empty_trunk, folder_digest, resolve_folder
from models.bundle import BundleRefusedError, read_bundle
from models.inject import adapter_parameter_count, targets
from pipeline.checkpoint import newest_checkpoint
from pipeline.config import RunConfig
from pipeline.encoded_cache import EncodingPlan, OnProgress, publish_encoded
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.files import json_sha256, read_json, remove_tree, write_json
from pipeline.gauges import TrainingGauges
from pipeline.live import LiveFollower, OnLine
from pipeline.reader import data_digest, find_partitions
from pipeline.train_loop import train_worker

NO_NUMBERS = {"checkpoint_every_steps", "hang_timeout_s"}  # settings of training that no number follows from
# and those that only rounding follows from
SPREAD = {"num_workers", "threads_per_worker", "use_gpu", "micro_batch_tokens", "gradient_checkpointing", "compile_layers"}
MAX_RESTARTS = 3  # of the workers, or of Ray's controller, within one command
TRAINING_BLOCKS = ("seed", "tasks", "split", "encode", "backbone", "adapter", "training", "optimizer", "deepspeed")


def training_fingerprint(config: RunConfig) -> tuple[str, str]:
    """(fingerprint, data digest): the first moves when anything does that the trained weights follow from. ConfigError: the
    backbone is not to be had."""
    digest = data_digest(find_partitions(config.accepted_dir, config.tasks))
    plain = config.model_dump(mode="json")
    backbone = folder_digest(checked_backbone(config))
    plain["training"] = {key: value for key, value in plain["training"].items() if key not in NO_NUMBERS}
    return json_sha256({**{key: plain[key] for key in TRAINING_BLOCKS}, "data": digest, "backbone_digest": backbone}), digest


def checked_backbone(config: RunConfig) -> Path:
    """The backbone's folder; ConfigError if it is not to be had or lacks a target module, before any worker is started."""
    try:
        folder = resolve_folder(config.backbone)
        targets(empty_trunk(folder), config.adapter)
    except (BackboneUnavailableError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return folder


def planned_parameters(config: RunConfig) -> tuple[int, int]:
    """(trainable, total) numbers of the model that the config describes, from shapes alone; `training_fingerprint` has checked the config."""
    trunk = empty_trunk(resolve_folder(config.backbone))
    heads = sum(len(task.labels) for task in config.tasks) * (trunk.config.get_text_config().hidden_size + 1)
    trainable = adapter_parameter_count(trunk, config.adapter, len(config.tasks)) + heads
    return trainable, sum(parameter.numel() for parameter in trunk.parameters()) + trainable


def run_training(config: RunConfig, fingerprint: str, digest: str, on_encoded: OnProgress, on_line: OnLine, say: Callable[[str], None]) -> Path:
    """The trained bundle's folder. A finished training of the same fingerprint is used as it is; an interrupted one goes on.

    `fingerprint` and `digest` are `training_fingerprint`'s. `on_encoded` gets rows encoded and rows in all, where they are not encoded yet;
    `on_line` each line of the live file as soon as it is written; `say` what a person should know.
    ConfigError: an interrupted training of another config or of other data is there. RetryableError: a worker or node was lost, or the process
    was told to end (SIGTERM): the state is kept first.
    """
    bundle_dir, training_dir = config.run_dir / "trained", config.run_dir / "training"
    checkpoint_dir = training_dir / "checkpoints"
    if trained_fingerprint(bundle_dir) == fingerprint:
        remove_tree(checkpoint_dir)  # there are such if the command was killed just after the bundle was published
        return bundle_dir
    partitions, tokenizer_dir = find_partitions(config.accepted_dir, config.tasks), resolve_folder(config.backbone)
    plan = EncodingPlan(partitions, config.split, config.tasks, config.encode, tokenizer_dir)
    encoded_dir = publish_encoded(plan, config.run_dir, on_encoded)
    live_path, stop_path = training_dir / "live.jsonl", training_dir / "stop"
    open_checkpoints(checkpoint_dir, training_facts(config, digest), say)
    live_path.write_text("")
    stop_path.unlink(missing_ok=True)
    settings = {
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "data_digest": digest,
        "encoded_dir": str(encoded_dir),
        "bundle_dir": str(bundle_dir),
        "checkpoint_dir": str(checkpoint_dir),
        "live_path": str(live_path),
        "stop_path": str(stop_path),
    }
    gauges = TrainingGauges(config.name)
    with LiveFollower(live_path, gauges.watching(on_line)), asked_to_stop(stop_path, say):
        fit(config, settings, training_dir / "ray", say, gauges)
    remove_tree(checkpoint_dir)
    return bundle_dir


def training_facts(config: RunConfig, digest: str) -> dict[str, Any]:
    """What an interrupted training may not change, setting by setting. How its work is spread it may: the numbers are the same but for rounding."""
    plain = config.model_dump(mode="json")
    # what dropout draws depends on which rank has a row
    free = NO_NUMBERS if config.adapter.lora_dropout else NO_NUMBERS | SPREAD
    plain["training"] = {key: value for key, value in plain["training"].items() if key not in free}
    blocks = {key: plain[key] for key in TRAINING_BLOCKS if key != "deepspeed"}
    return {**blocks, "data": digest, "backbone_digest": folder_digest(resolve_folder(config.backbone))}


def open_checkpoints(folder: Path, facts: dict[str, Any], say: Callable[[str], None]) -> None:
    """Make the folder of a training's checkpoints, or go on with the one that is there. ConfigError: it is another training's."""
    of_training = folder / "training.json"
    newest, problems = newest_checkpoint(folder)
    if newest is not None:
        try:
            changed = changes(read_json(of_training), facts)
        except (OSError, DamagedInputError) as error:
            raise ConfigError(f"{of_training} is gone or damaged, so these may be another training's checkpoints; remove {folder}") from error
        if changed:
            raise ConfigError(
                f"{folder} holds an interrupted training that was other than this one: {'; '.join(changed[:8])}. Go back to its config to finish it,"
                f" run under another name, or remove {folder} to start anew"
            )
        for problem in problems:
            say(f"  a damaged checkpoint is passed over: {problem}")
        say(f"  going on from {newest.name}")
    else:
        remove_tree(folder)
        folder.mkdir(parents=True)
        write_json(of_training, facts)
        for problem in problems:
            say(f"  no checkpoint is whole, starting anew: {problem}")


def changes(before: Any, now: Any, where: str = "") -> list[str]:
    """Each setting that differs, as sentences."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [text for key in sorted({*before, *now}) for text in changes(before.get(key), now.get(key), f"{where}.{key}" if where else key)]
    return [] if before == now else [f"{where} was {json.dumps(before)}, is {json.dumps(now)}"]


@contextlib.contextmanager
def asked_to_stop(stop_path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """While inside, SIGTERM asks the workers to keep their state and stop; a second one ends the process as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: object) -> None:
        signal.signal(number, before)
        stop_path.touch()
        say("  SIGTERM: keeping the state after this step, then stopping")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def trained_fingerprint(bundle_dir: Path) -> str | None:
    """The fingerprint of the training that wrote a bundle; None if there is no whole bundle."""
    try:
        return str(read_bundle(bundle_dir).description["training"]["fingerprint"])
    except BundleRefusedError:
        return None


def fit(config: RunConfig, settings: dict[str, Any], storage_dir: Path, say: Callable[[str], None], gauges: TrainingGauges) -> None:
    """Run the workers to their end, starting them again where they are lost. Errors meant for the user come out as they were raised.

    The loop is ours as Ray would start workers again whatever ended them, a stop that was asked for and a loss that is not finite too.
    """
    for restarts in range(MAX_RESTARTS + 1):
        try:
            run_workers(config, settings, storage_dir)
            return
        except Exception as error:
            told = told_to_user(error)
            if told is not None:
                raise told from error
            if restarts == MAX_RESTARTS or Path(settings["stop_path"]).exists():
                lost = f"training workers were lost ({first_line(error)}); run the same command again: it goes on from its last checkpoint"
                raise RetryableError(lost) from error
            gauges.restarted()
            say(f"  workers were lost ({first_line(error)}); starting them again, {restarts + 1} of {MAX_RESTARTS}")
            for problem in newest_checkpoint(Path(settings["checkpoint_dir"]))[1]:
                say(f"  a damaged checkpoint is passed over: {problem}")


def run_workers(config: RunConfig, settings: dict[str, Any], storage_dir: Path) -> None:
    """One start of the workers, to their end."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray resumes a run of the same name from its own snapshot; ours are the checkpoints, so Ray's state starts empty every time
    remove_tree(storage_dir)
    training = config.training
    resources = {"CPU": training.threads_per_worker} | ({"GPU": 1} if training.use_gpu else {})
    failures = FailureConfig(max_failures=0, controller_failure_limit=MAX_RESTARTS)  # type: ignore[call-arg]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={**settings, "asked_at_s": time.time()},
        torch_config=TorchConfig(backend="nccl" if training.use_gpu else "gloo", timeout_s=math.ceil(training.hang_timeout_s)),
        scaling_config=ScalingConfig(num_workers=training.num_workers, use_gpu=training.use_gpu, resources_per_worker=resources),
        run_config=RayRunConfig(name=config.name, storage_path=str(storage_dir), failure_config=failures),
    )
    # Ray's own would stay after the training and end the command with 0
    trainer._register_sigint_handler = lambda controller: None  # type: ignore[attr-defined]
    trainer.fit()


def told_to_user(error: BaseException | None) -> RelevanceError | None:
    """The RelevanceError that workers raised, if that is what ended the training."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, RelevanceError):
            return error
        for failure in getattr(error, "worker_failures", {}).values():
            inner = told_to_user(failure)
            if inner is not None:
                return inner
        error = error.__cause__ or getattr(error, "cause", None)
    return None


def first_line(error: BaseException) -> str:
    """A short name for an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
