"""Private APIs of DeepSpeed, each with its reason.

Tested with the version below; tests/pipeline/training/test_deepspeed_internals.py fails where another version
behaves differently. `engine` is what `deepspeed.initialize` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

TESTED_VERSION = "0.19.8"


def disable_shared_memory_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives, which takes a minute on a first run.

    No public setting does. Gloo takes their place, whose sums do not depend on the machine's instruction set.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def use_default_process_group() -> None:
    """Let DeepSpeed use torch's default process group and its timeout.

    The group that DeepSpeed creates otherwise waits half an hour for a lost rank, and no public setting
    changes that. DeepSpeed's experts and hpZ, which are not used here, would hang with this group.
    """
    import deepspeed

    deepspeed.utils.groups._WORLD_GROUP = torch.distributed.group.WORLD


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Return whether ZeRO 3 has split the parameter among the ranks; `ds_id` marks those."""
    return hasattr(parameter, "ds_id")


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside DeepSpeed's.

    It steps on this rank's flat partitions at ZeRO 1 to 3, and on the parameters at 0. DeepSpeed's own
    `state_dict` cannot be loaded by another number of ranks or at another stage.
    """
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def refresh_master_weights(engine: Any) -> None:
    """Copy restored parameters into the flat float32 copies that ZeRO 1 and 2 step on."""
    if hasattr(engine.optimizer, "refresh_fp32_params"):
        engine.optimizer.refresh_fp32_params()


@dataclass(frozen=True)
class OptimizerSlice:
    """Elements start .. start + count of a flat parameter, and the place of their optimizer state.

    The state is at `offset` of that of `owner`, a tensor that the torch optimizer steps on.
    """

    start: int
    count: int
    owner: torch.Tensor
    offset: int


def local_slice(engine: Any, parameter: Any) -> OptimizerSlice:
    """Return the part of a parameter whose optimizer state is on this rank; a count of 0 if there is none.

    DeepSpeed's public accessors gather the whole state on every rank.
    """
    zero = engine.optimizer
    if is_partitioned(parameter):
        index, offset, count = zero.grad_position[zero.get_param_id(parameter)]
        # partitions of the last ranks are padding, in part or as a whole
        start = min(count * zero._get_param_partition_rank(parameter), parameter.ds_numel)
        owner = zero.fp32_partitioned_groups_flat[index]
        return OptimizerSlice(start, min(count, parameter.ds_numel - start), owner, offset)
    if hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2
        mapping = parameter._hp_mapping
        if mapping is None:
            return OptimizerSlice(0, 0, parameter, 0)
        source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
        owner = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return OptimizerSlice(source.start, source.numel, owner, target.start)
    return OptimizerSlice(0, parameter.numel(), parameter, 0)


def local_gradients(engine: Any) -> list[tuple[int, torch.Tensor]]:
    """Return (index of the parameter group, gradient) of each tensor that this rank steps on.

    Valid between `backward` and `step`, before clipping. DeepSpeed offers the norm of all gradients only.
    """
    optimizer, zero_stage = engine.optimizer, engine.zero_optimization_stage()
    if zero_stage == 0:
        return [
            (index, parameter.grad)
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            if parameter.grad is not None
        ]
    # ZeRO 3 splits groups into smaller ones
    if zero_stage == 3:
        group_of, partitions = optimizer.sub_group_to_group_id, optimizer.fp32_partitioned_groups_flat
    else:
        partitions = optimizer.single_partition_of_fp32_groups
        group_of = {index: index for index in range(len(partitions))}
    if engine.zero_use_cpu_optimizer():
        return [
            (group_of[index], partition.grad)
            for index, partition in enumerate(partitions)
            if partition.grad is not None
        ]
    return [
        (group_of[index], gradient)
        for index, gradients in optimizer.averaged_gradients.items()
        for gradient in gradients or ()
    ]
