"""Adam's moments under every ZeRO stage, by the parameter they belong to: so that any number of ranks can take up what another number left.

Each rank holds some fragments: a run of consecutive numbers of a flattened parameter, and the optimizer's state of just these.
ZeRO 0: every rank all of every parameter. 1 and 2: cuts through the parameters laid end to end. 3: an equal part of each parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Where numbers start .. start + count of a flattened parameter have their state: at `offset` of one of the optimizer's own tensors."""

    name: str
    start: int
    count: int
    owner: torch.Tensor  # what torch's optimizer steps on
    offset: int


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's: over this rank's flat partitions at ZeRO 1 to 3, over the parameters at 0."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def fragments(engine: Any) -> Iterator[Fragment]:
    """What this rank holds."""
    for name, parameter in engine.module.trainable_state().items():
        if hasattr(parameter, "ds_id"):
            zero = engine.optimizer
            group, offset, count = zero.grad_position[zero.get_param_id(parameter)]
            # parts of the last ranks are padding, in part or as a whole
            start = min(count * zero._get_param_partition_rank(parameter), parameter.ds_numel)
            yield Fragment(name, start, min(count, parameter.ds_numel - start), zero.fp32_partitioned_groups_flat[group], offset)
        elif hasattr(parameter, "_hp_mapping"):
            mapping = parameter._hp_mapping
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(name, here.start, here.numel, engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index], there.start)
        else:
            yield Fragment(name, 0, parameter.numel(), parameter, 0)


def optimizer_tensors(engine: Any, rank: int) -> dict[str, torch.Tensor]:
    """This rank's moments and step counts under names such as heads.0.weight@0.exp_avg, 0 being where the fragment starts; of what all ranks
    hold, rank 0 alone gives them."""
    tensors = {}
    mine = engine.module.trainable_state()
    for fragment in fragments(engine):
        state = inner_optimizer(engine).state.get(fragment.owner)
        if not state or not fragment.count or (rank > 0 and fragment.owner is mine.get(fragment.name)):
            continue
        for moment in MOMENTS:
            part = state[moment].flatten().narrow(0, fragment.offset, fragment.count)
            tensors[f"{fragment.name}@{fragment.start}.{moment}"] = part.detach().cpu().clone()
        tensors[f"{fragment.name}@{fragment.start}.step"] = torch.as_tensor(state["step"]).detach().cpu().reshape(1).clone()
    return tensors


def load_optimizer_tensors(engine: Any, stored: dict[str, torch.Tensor]) -> None:
    """Give a fresh engine the state that `optimizer_tensors` of all ranks together tell, however many these were."""
    optimizer = inner_optimizer(engine)
    whole = assemble({name: p.ds_numel if hasattr(p, "ds_id") else p.numel() for name, p in engine.module.trainable_state().items()}, stored)
    for fragment in fragments(engine):
        state, found = optimizer.state[fragment.owner], whole.get(fragment.name)
        if found is None:
            continue
        for moment in MOMENTS:
            if moment not in state:
                state[moment] = torch.zeros_like(fragment.owner, memory_format=torch.preserve_format)
            part = found[moment].narrow(0, fragment.start, fragment.count)
            state[moment].view(-1).narrow(0, fragment.offset, fragment.count).copy_(part)
        state["step"] = found["step"].clone().reshape(())


def assemble(sizes: dict[str, int], stored: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Fragments put together: parameter -> moment -> all its numbers."""
    whole: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        name, _, place = key.rpartition("@")
        start, _, moment = place.partition(".")
        if moment == "step":
            whole.setdefault(name, {})["step"] = tensor
        else:
            numbers = whole.setdefault(name, {}).setdefault(moment, torch.zeros(sizes[name], dtype=tensor.dtype))
            numbers.narrow(0, int(start), len(tensor)).copy_(tensor)
    return whole
