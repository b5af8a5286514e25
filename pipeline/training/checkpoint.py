"""Checkpoints of a training run: trained tensors, optimizer state and position, as safetensors and json,
whole or absent.

    <root>/step-00000200/
        weights.safetensors
        optimizer-<rank>.safetensors
        best.safetensors               of the best evaluation so far, once there is one
        state.json
        manifest.json                  sha256 of the others, written last

Every rank writes its own part of the optimizer's state into one staged folder on storage that all share; rank
0 hashes and renames it. Writing goes on beside the next steps. Any number of ranks can go on from what
another number wrote.
"""

import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from models.files import file_sha256, synced
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.storage.filesystem import publish_dir, read_json, remove_tree, temporary_beside, write_json
from pipeline.training.validation_loop import Best
from pipeline.training.zero_state import load_optimizer_tensors, optimizer_tensors

KEEP = 2  # newest checkpoints kept: one to use, one should it prove damaged

WAIT_S = 600.0  # for the other ranks' parts, on storage that may be slow


def gather_trainables(engine: Any) -> dict[str, torch.Tensor]:
    """The whole trained tensors on every rank. All ranks must call it: at ZeRO 3 it is a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    flats = {
        group: (safe_get_full_fp32_param(flat) if hasattr(flat, "ds_id") else flat).detach().cpu()
        for group, flat in engine.module.trainable_state().items()
    }
    return {name: tensor.clone() for name, tensor in engine.module.cut_up(flats).items()}


class CheckpointWriter:
    """One rank's part in the checkpoints of one start of the workers. Every method but `wait` must be called
    by all ranks. As a context: when an error ends it, what is being written is given up.
    """

    def __init__(self, engine: Any, root: Path, rank: int, world_size: int, wait_s: float = WAIT_S) -> None:
        """`wait_s`: for the other ranks' parts."""
        self.engine, self.root, self.rank, self.world_size, self.wait_s = (
            engine,
            root,
            rank,
            world_size,
            wait_s,
        )
        # whose checkpoint is there or being written: it is not written twice, as ranks do so at their own
        # pace
        self.kept_step: int | None = None
        # one name for all ranks, and never that of an earlier start, whose unfinished parts may still lie
        # there
        names = [uuid.uuid4().hex[:12]]
        torch.distributed.broadcast_object_list(names, src=0)
        self.attempt = names[0]
        if rank == 0:
            for left in root.glob(".step-*.tmp"):
                if self.attempt not in left.name:
                    remove_tree(left)
        self._background = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._given_up = threading.Event()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._given_up.set()
        self._background.shutdown()

    def save(self, step: int, best: Best | None) -> None:
        """Take down the state after `step` steps and begin to write it, unless that was done. OSError,
        RetryableError: the one before could not be written.
        """
        if step == self.kept_step:
            return
        self.wait()
        self.kept_step = step
        tensors = gather_trainables(self.engine)
        parts = {f"optimizer-{self.rank}.safetensors": optimizer_tensors(self.engine, self.rank)}
        if self.rank == 0:
            parts["weights.safetensors"] = tensors
            if best:
                parts["best.safetensors"] = best.tensors
        best_facts = best.facts() if best else None
        state = {
            "step": step,
            "world_size": self.world_size,
            "frozen_dtype": frozen_dtype(self.engine),
            "best": best_facts,
        }
        self._pending = self._background.submit(self._write, state, parts)

    def wait(self) -> None:
        """Until what was begun is written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, state: dict[str, Any], parts: dict[str, dict[str, torch.Tensor]]) -> None:
        name_of_step = f"step-{state['step']:08d}"
        staged = self.root / f".{name_of_step}.{self.attempt}.tmp"
        staged.mkdir(parents=True, exist_ok=True)
        for name, tensors in parts.items():
            write_part(staged / name, save(tensors))
        if self.rank == 0:
            write_json(staged / "state.json", state)
            self._wait_for([staged / f"optimizer-{rank}.safetensors" for rank in range(self.world_size)])
            write_json(
                staged / "manifest.json", {path.name: file_sha256(path) for path in sorted(staged.iterdir())}
            )
            publish_dir(staged, self.root / name_of_step)
            for old in sorted(self.root.glob("step-*"))[:-KEEP]:
                remove_tree(old)

    def _wait_for(self, paths: list[Path]) -> None:
        """Until every rank's part is there: files appear whole."""
        deadline_s = time.monotonic() + self.wait_s
        while missing := [path.name for path in paths if not path.is_file()]:
            if self._given_up.is_set() or time.monotonic() > deadline_s:
                raise RetryableError(
                    f"{', '.join(missing)} of a checkpoint did not come; it was given up; run the same "
                    "command again"
                )
            time.sleep(0.01)


def frozen_dtype(engine: Any) -> str:
    """The precision of what is not trained."""
    return next(
        (str(p.dtype).removeprefix("torch.") for p in engine.module.parameters() if not p.requires_grad),
        "none",
    )


def write_part(path: Path, content: bytes) -> None:
    """Let a file appear whole. The folder is not touched after that: rank 0 may rename it as soon as all
    parts are there.
    """
    temporary = temporary_beside(path)
    try:
        with synced(temporary) as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file it was
        raise


def newest_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """(the newest whole checkpoint, what is wrong with newer ones). RetryableError: as `check_checkpoint`
    says.
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
    """DamagedInputError naming the first file of a checkpoint that is missing or does not match its sha256.
    RetryableError: storage does not hand it out, which says nothing of what it holds.
    """
    try:
        listed = listed_files(folder)
        for name, digest in listed.items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != digest:
                raise DamagedInputError(f"{path} is missing or does not match its sha256")
    except OSError as error:
        cure = (
            "run the same command again or, if it stays so, move it away: the checkpoint before it is "
            "used then"
        )
        raise RetryableError(f"{folder} cannot be read ({error}); {cure}") from error


def listed_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file that a checkpoint's manifest lists. DamagedInputError: there is no manifest, or
    none of a checkpoint.
    """
    if not (folder / "manifest.json").is_file():
        raise DamagedInputError(f"{folder} has no manifest.json")
    listed = read_json(folder / "manifest.json")
    if (
        not isinstance(listed, dict)
        or not {"weights.safetensors", "state.json", "optimizer-0.safetensors"} <= listed.keys()
    ):
        raise DamagedInputError(f"{folder / 'manifest.json'} does not list a checkpoint's files")
    return listed


def restore_checkpoint(engine: Any, folder: Path) -> tuple[int, Best | None]:
    """Put a checkpoint's numbers into a freshly initialised engine; returns the steps already done and the
    best evaluation among them. All ranks must call it. ConfigError: the frozen weights had another precision,
    as on a machine of another kind.
    """
    from deepspeed.runtime.zero import GatheredParameters

    state = read_json(folder / "state.json")
    if state["frozen_dtype"] != frozen_dtype(engine):
        was, now = state["frozen_dtype"], frozen_dtype(engine)
        raise ConfigError(
            f"{folder} was trained on {was} weights, here they are {now}; set backbone.dtype to {was} to "
            "go on"
        )
    tensors = load((folder / "weights.safetensors").read_bytes())
    flats = engine.module.trainable_state()
    with (
        torch.no_grad(),
        GatheredParameters(
            list(flats.values()), modifier_rank=0, enabled=hasattr(next(iter(flats.values())), "ds_id")
        ),
    ):
        for name, mine in engine.module.cut_up(flats).items():
            mine.copy_(tensors[name])
    if hasattr(engine.optimizer, "refresh_fp32_params"):
        engine.optimizer.refresh_fp32_params()  # ZeRO 1 and 2 step on flat copies of the parameters
    stored: dict[str, torch.Tensor] = {}
    for name in listed_files(folder):
        if name.startswith("optimizer-"):
            stored |= load((folder / name).read_bytes())
    load_optimizer_tensors(engine, stored)
    best = (
        Best(**state["best"], tensors=load((folder / "best.safetensors").read_bytes()))
        if state.get("best")
        else None
    )
    return int(state["step"]), best
