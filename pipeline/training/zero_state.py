"""Adam's moments under every ZeRO stage, by the tensor they belong to: so that any number of ranks can take
up what another number left.

Each rank holds some fragments: a run of consecutive numbers of a flattened tensor, and the optimizer's state
of just these. They come of the cuts that ZeRO makes through the model's flat parameters: none at 0, where
every rank holds all, and into about equal parts at 1, 2 and 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Cut:
    """Where numbers start .. start + count of a flat parameter have their state: at `offset` of one of the
    optimizer's own tensors.
    """

    start: int
    count: int
    owner: torch.Tensor  # what torch's optimizer steps on
    offset: int


@dataclass(frozen=True)
class Fragment:
    """The same of a flattened tensor of the model."""

    name: str
    start: int
    count: int
    owner: torch.Tensor
    offset: int


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's: over this rank's flat partitions at ZeRO 1 to 3, over the
    parameters at 0.
    """
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def fragments(engine: Any) -> Iterator[Fragment]:
    """What this rank holds."""
    for group, flat in engine.module.trainable_state().items():
        cut = cut_of(engine, flat)
        for slot in engine.module.slots[group]:
            start, end = max(slot.start, cut.start), min(slot.start + slot.count, cut.start + cut.count)
            if start < end:
                yield Fragment(
                    slot.name, start - slot.start, end - start, cut.owner, cut.offset + start - cut.start
                )


def cut_of(engine: Any, flat: Any) -> Cut:
    """What this rank holds of a flat parameter; a count of 0: nothing."""
    zero = engine.optimizer
    if hasattr(flat, "ds_id"):
        index, offset, count = zero.grad_position[zero.get_param_id(flat)]
        # parts of the last ranks are padding, in part or as a whole
        start = min(count * zero._get_param_partition_rank(flat), flat.ds_numel)
        return Cut(start, min(count, flat.ds_numel - start), zero.fp32_partitioned_groups_flat[index], offset)
    if hasattr(flat, "_hp_mapping"):
        if (mapping := flat._hp_mapping) is None:
            return Cut(0, 0, flat, 0)
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Cut(
            here.start,
            here.numel,
            zero.single_partition_of_fp32_groups[mapping.param_group_index],
            there.start,
        )
    return Cut(0, flat.numel(), flat, 0)


def optimizer_tensors(engine: Any, rank: int) -> dict[str, torch.Tensor]:
    """This rank's moments and step counts under names such as heads.weight_KD@0.exp_avg, 0 being where the
    fragment starts; of what all ranks hold, rank 0 alone gives them.
    """
    tensors = {}
    of_all_ranks = {id(flat) for flat in engine.module.trainable_state().values()}
    for fragment in fragments(engine):
        state = inner_optimizer(engine).state.get(fragment.owner)
        if not state or (rank > 0 and id(fragment.owner) in of_all_ranks):
            continue
        for moment in MOMENTS:
            part = state[moment].flatten().narrow(0, fragment.offset, fragment.count)
            tensors[f"{fragment.name}@{fragment.start}.{moment}"] = part.detach().cpu().clone()
        tensors[f"{fragment.name}@{fragment.start}.step"] = (
            torch.as_tensor(state["step"]).detach().cpu().reshape(1).clone()
        )
    return tensors


def load_optimizer_tensors(engine: Any, stored: dict[str, torch.Tensor]) -> None:
    """Give a fresh engine the state that `optimizer_tensors` of all ranks together tell, however many these
    were.
    """
    optimizer = inner_optimizer(engine)
    whole = assemble(
        {slot.name: slot.count for slots in engine.module.slots.values() for slot in slots}, stored
    )
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
    """Fragments put together: tensor -> moment -> all its numbers."""
    whole: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        name, _, place = key.rpartition("@")
        start, _, moment = place.partition(".")
        if moment == "step":
            whole.setdefault(name, {})["step"] = tensor
        else:
            numbers = whole.setdefault(name, {}).setdefault(
                moment, torch.zeros(sizes[name], dtype=tensor.dtype)
            )
            numbers.narrow(0, int(start), len(tensor)).copy_(tensor)
    return whole
