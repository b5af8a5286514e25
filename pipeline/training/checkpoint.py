"""Checkpoints of a training run: trained tensors, optimizer state and position, as safetensors and JSON.

A checkpoint is whole or absent:

    <root>/step-00000200/
        weights.safetensors
        optimizer-<rank>.safetensors
        best.safetensors               weights of the best evaluation so far, if there is one
        state.json
        manifest.json                  sha256 of the other files, written last

Every rank writes its part of the optimizer state into one staged folder on shared storage; rank 0 hashes
and renames it. Writing overlaps with the next steps. Any number of ranks can resume from the checkpoint of
another number.
"""

import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from models.files import atomic_writer, file_sha256, publish_dir, remove_tree
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.storage.filesystem import read_json, read_json_as, write_json
from pipeline.training.deepspeed_internals import is_partitioned, refresh_master_weights
from pipeline.training.event_log import BestEvaluation
from pipeline.training.validation_loop import BestWeights
from pipeline.training.zero_state import load_optimizer_tensors, optimizer_tensors

KEPT_CHECKPOINTS = 2  # the newest one, and one in case it is damaged

WAIT_S = 600.0  # for the other ranks' parts, on storage that may be slow

REQUIRED_FILES = {"weights.safetensors", "state.json", "optimizer-0.safetensors"}


@dataclass(frozen=True)
class CheckpointState:
    """Content of a checkpoint's state.json."""

    step: int  # steps done
    world_size: int
    frozen_dtype: str  # of the weights that are not trained
    best: BestEvaluation | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "CheckpointState":
        """Build from the JSON form."""
        best = value["best"]
        return cls(**{**value, "best": None if best is None else BestEvaluation.from_json(best)})


def gather_trainables(engine: Any) -> dict[str, torch.Tensor]:
    """Return the whole trained tensors. All ranks must call it: at ZeRO 3 it is a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    flats = {
        group: (safe_get_full_fp32_param(flat) if is_partitioned(flat) else flat).detach().cpu()
        for group, flat in engine.module.trainable_state().items()
    }
    return {name: tensor.clone() for name, tensor in engine.module.split_by_name(flats).items()}


class CheckpointWriter:
    """Writer of one rank's parts of the checkpoints, for one start of the workers.

    All ranks must call every method except `wait`. If the context ends in an error, the checkpoint in
    progress is abandoned.
    """

    def __init__(self, engine: Any, root: Path, rank: int, world_size: int, wait_s: float = WAIT_S) -> None:
        """Agree on a name for the staged folders and remove those of earlier starts.

        Args:
            engine: DeepSpeed's engine.
            root: Folder of the checkpoints.
            rank: Rank of this worker.
            world_size: Number of ranks.
            wait_s: Seconds to wait for the other ranks' parts.
        """
        self.engine, self.root, self.rank, self.world_size = engine, root, rank, world_size
        self.wait_s = wait_s
        # step of the last checkpoint, which may still be in progress
        self.saved_step: int | None = None
        # the same name on all ranks, and never that of an earlier start, whose parts may still be there
        names = [uuid.uuid4().hex[:12]]
        torch.distributed.broadcast_object_list(names, src=0)
        self.attempt = names[0]
        if rank == 0:
            for path in root.glob(".step-*.tmp"):
                if self.attempt not in path.name:
                    remove_tree(path)
        self._background = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._abandoned = threading.Event()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._abandoned.set()
        self._background.shutdown()

    def save(self, step: int, best: BestWeights | None) -> None:
        """Copy the state after `step` steps and start to write it, unless that was done.

        Raises:
            OSError, RetryableError: The previous checkpoint could not be written.
        """
        if step == self.saved_step:
            return
        self.wait()
        self.saved_step = step
        tensors = gather_trainables(self.engine)
        parts = {f"optimizer-{self.rank}.safetensors": optimizer_tensors(self.engine, self.rank)}
        if self.rank == 0:
            parts["weights.safetensors"] = tensors
            if best:
                parts["best.safetensors"] = best.tensors
        evaluation = best.evaluation if best else None
        state = CheckpointState(step, self.world_size, frozen_dtype(self.engine), evaluation)
        self._pending = self._background.submit(self._write, state, parts)

    def wait(self) -> None:
        """Wait until the checkpoint is written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, state: CheckpointState, parts: dict[str, dict[str, torch.Tensor]]) -> None:
        folder_name = f"step-{state.step:08d}"
        staged = self.root / f".{folder_name}.{self.attempt}.tmp"
        staged.mkdir(parents=True, exist_ok=True)
        for name, tensors in parts.items():
            write_part(staged / name, save(tensors))
        if self.rank == 0:
            write_json(staged / "state.json", state.to_json())
            self._wait_for([staged / f"optimizer-{rank}.safetensors" for rank in range(self.world_size)])
            digests = {path.name: file_sha256(path) for path in sorted(staged.iterdir())}
            write_json(staged / "manifest.json", digests)
            publish_dir(staged, self.root / folder_name)
            for old in sorted(self.root.glob("step-*"))[:-KEPT_CHECKPOINTS]:
                remove_tree(old)

    def _wait_for(self, paths: list[Path]) -> None:
        """Wait until every rank's part is there; parts appear whole."""
        deadline_s = time.monotonic() + self.wait_s
        while missing := [path.name for path in paths if not path.is_file()]:
            if self._abandoned.is_set() or time.monotonic() > deadline_s:
                raise RetryableError(
                    f"checkpoint was abandoned: {', '.join(missing)} is missing; run the same command again"
                )
            time.sleep(0.01)


def frozen_dtype(engine: Any) -> str:
    """Return the dtype of the weights that are not trained, such as "bfloat16"; "none" if there are none."""
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            return str(parameter.dtype).removeprefix("torch.")
    return "none"


def write_part(path: Path, content: bytes) -> None:
    """Write a file that appears whole.

    The folder is not touched afterwards: rank 0 may rename it as soon as all parts are there.
    """
    with atomic_writer(path, sync_folder=False) as file:
        file.write(content)


def find_newest_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, and the problems of newer ones.

    Raises:
        RetryableError: A checkpoint cannot be read.
    """
    problems = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            check_checkpoint(folder)
        except DamagedInputError as error:
            problems.append(str(error))
            continue
        return folder, problems
    return None, problems


def check_checkpoint(folder: Path) -> None:
    """Check that a checkpoint's files are there and match their sha256.

    Raises:
        DamagedInputError: A file is missing or altered; the message names the first one.
        RetryableError: The storage does not return a file, which says nothing about its content.
    """
    try:
        for name, digest in read_manifest(folder).items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != digest:
                raise DamagedInputError(f"{path} is missing or does not match its sha256")
    except OSError as error:
        raise RetryableError(
            f"{folder} cannot be read ({error}); run the same command again. If the error stays, move the "
            "folder away: the checkpoint before it is used then"
        ) from error


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a checkpoint; DamagedInputError without a valid manifest."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise DamagedInputError(f"{folder} has no manifest.json")
    digests = read_json(path)
    if not isinstance(digests, dict) or not digests.keys() >= REQUIRED_FILES:
        raise DamagedInputError(f"{path} does not list a checkpoint's files")
    return digests


def restore_checkpoint(engine: Any, folder: Path) -> tuple[int, BestWeights | None]:
    """Restore a checkpoint into a freshly initialised engine. All ranks must call it.

    Returns:
        The number of steps done, and the best evaluation among them.

    Raises:
        ConfigError: The frozen weights had another dtype, as on another kind of machine.
    """
    state = read_json_as(folder / "state.json", CheckpointState.from_json)
    current_dtype = frozen_dtype(engine)
    if state.frozen_dtype != current_dtype:
        raise ConfigError(
            f"{folder} was trained on {state.frozen_dtype} weights, but this machine uses {current_dtype}; "
            f"set backbone.dtype to {state.frozen_dtype} to resume"
        )
    _restore_weights(engine, load((folder / "weights.safetensors").read_bytes()))
    stored: dict[str, torch.Tensor] = {}
    for name in read_manifest(folder):
        if name.startswith("optimizer-"):
            stored |= load((folder / name).read_bytes())
    load_optimizer_tensors(engine, stored)
    best = None
    if state.best is not None:
        best = BestWeights(state.best, load((folder / "best.safetensors").read_bytes()))
    return state.step, best


def _restore_weights(engine: Any, tensors: dict[str, torch.Tensor]) -> None:
    from deepspeed.runtime.zero import GatheredParameters

    flats = engine.module.trainable_state()
    parameters = list(flats.values())
    with (
        torch.no_grad(),
        GatheredParameters(parameters, modifier_rank=0, enabled=is_partitioned(parameters[0])),
    ):
        for name, tensor in engine.module.split_by_name(flats).items():
            tensor.copy_(tensors[name])
    refresh_master_weights(engine)
