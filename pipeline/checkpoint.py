"""Checkpoints of a training run: trained tensors, optimizer state and position, as safetensors and json, whole or absent.

    <root>/step-00000200/   weights.safetensors  optimizer-<rank>.safetensors  state.json  manifest.json (sha256 of the others, written last)
Every rank writes its own part of the optimizer into one staged folder on storage that all share; rank 0 hashes and renames it.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline.errors import DamagedInputError
from pipeline.files import file_sha256, publish_dir, read_json, remove_tree, write_bytes, write_json

KEEP = 2  # newest checkpoints kept: one to use, one should it prove damaged


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's: over this rank's flat partitions at ZeRO 1 to 3, over the parameters at 0."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def gather_trainables(engine: Any) -> dict[str, torch.Tensor]:
    """The whole trained tensors on every rank. All ranks must call it: at ZeRO 3 it is a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: (safe_get_full_fp32_param(parameter) if hasattr(parameter, "ds_id") else parameter).detach().cpu().clone()
        for name, parameter in engine.module.trainable_state().items()
    }


def write_checkpoint(engine: Any, root: Path, step: int, rank: int) -> None:
    """Publish the state after `step` steps. All ranks must call it."""
    staged, final = root / f".step-{step:08d}.tmp", root / f"step-{step:08d}"
    tensors = gather_trainables(engine)
    if rank == 0:
        remove_tree(staged)
        staged.mkdir(parents=True)
    torch.distributed.barrier()
    write_bytes(staged / f"optimizer-{rank}.safetensors", save(flat_optimizer_state(inner_optimizer(engine))))
    torch.distributed.barrier()
    if rank == 0:
        write_bytes(staged / "weights.safetensors", save(tensors))
        write_json(staged / "state.json", {"step": step, "world_size": torch.distributed.get_world_size()})
        write_json(staged / "manifest.json", {path.name: file_sha256(path) for path in sorted(staged.iterdir())})
        publish_dir(staged, final)
        for old in sorted(root.glob("step-*"))[:-KEEP]:
            remove_tree(old)
    torch.distributed.barrier()


def flat_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors under names such as 0.exp_avg."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous() for index, entry in state.items() for key, value in entry.items()}


def newest_checkpoint(root: Path, world_size: int) -> Path | None:
    """The newest whole checkpoint of this world size; damaged ones are passed over."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            check_checkpoint(folder)
        except DamagedInputError:
            continue
        if read_json(folder / "state.json")["world_size"] == world_size:
            return folder
    return None


def check_checkpoint(folder: Path) -> None:
    """DamagedInputError naming the first file of a checkpoint that is missing or does not match its sha256."""
    if not (folder / "manifest.json").is_file():
        raise DamagedInputError(f"{folder} has no manifest.json")
    listed = read_json(folder / "manifest.json")
    if not isinstance(listed, dict) or not {"weights.safetensors", "state.json", "optimizer-0.safetensors"} <= listed.keys():
        raise DamagedInputError(f"{folder / 'manifest.json'} does not list a checkpoint's files")
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            raise DamagedInputError(f"{path} is missing or does not match its sha256")


def restore_checkpoint(engine: Any, folder: Path, rank: int) -> int:
    """Put a checkpoint's numbers into a freshly initialised engine; returns the steps already done. All ranks must call it."""
    from deepspeed.runtime.zero import GatheredParameters

    tensors = load((folder / "weights.safetensors").read_bytes())
    mine = engine.module.trainable_state()
    with torch.no_grad(), GatheredParameters(list(mine.values()), modifier_rank=0, enabled=hasattr(next(iter(mine.values())), "ds_id")):
        for name, parameter in mine.items():
            parameter.data.copy_(tensors[name])
    if hasattr(engine.optimizer, "refresh_fp32_params"):
        engine.optimizer.refresh_fp32_params()  # ZeRO 1 and 2 step on flat copies of the parameters
    optimizer = inner_optimizer(engine)
    whole = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load((folder / f"optimizer-{rank}.safetensors").read_bytes()).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return int(read_json(folder / "state.json")["step"])
