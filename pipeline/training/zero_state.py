"""Optimizer state under every ZeRO stage, stored by tensor name so that any number of ranks can restore it.

Each rank holds fragments: runs of consecutive elements of a flattened tensor, with the optimizer state of
just these. At stage 0 every rank holds all flat parameters; at stages 1, 2 and 3 each rank
holds a nearly equal part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.deepspeed_internals import inner_optimizer, local_slice

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements start .. start + count of a flattened tensor, and the place of their optimizer state.

    The state is at `offset` of that of `owner`, a tensor that the torch optimizer steps on.
    """

    name: str
    start: int
    count: int
    owner: torch.Tensor
    offset: int


def local_fragments(engine: Any) -> Iterator[Fragment]:
    """Yield the fragments whose optimizer state is on this rank."""
    for group, flat in engine.module.trainable_state().items():
        part = local_slice(engine, flat)
        for slot in engine.module.slots[group]:
            start = max(slot.start, part.start)
            end = min(slot.start + slot.count, part.start + part.count)
            if start < end:
                offset = part.offset + start - part.start
                yield Fragment(slot.name, start - slot.start, end - start, part.owner, offset)


def optimizer_tensors(engine: Any, rank: int) -> dict[str, torch.Tensor]:
    """Return this rank's moments and step counts.

    Names are such as heads.weight_KD@0.exp_avg, where 0 is the start of the fragment. State that all
    ranks hold is returned by rank 0 only.
    """
    tensors = {}
    replicated = {id(flat) for flat in engine.module.trainable_state().values()}
    for fragment in local_fragments(engine):
        state = inner_optimizer(engine).state.get(fragment.owner)
        if not state or (rank > 0 and id(fragment.owner) in replicated):
            continue
        key = f"{fragment.name}@{fragment.start}"
        for moment in MOMENTS:
            part = state[moment].flatten().narrow(0, fragment.offset, fragment.count)
            tensors[f"{key}.{moment}"] = part.detach().cpu().clone()
        tensors[f"{key}.step"] = torch.as_tensor(state["step"]).detach().cpu().reshape(1).clone()
    return tensors


def load_optimizer_tensors(engine: Any, stored: dict[str, torch.Tensor]) -> None:
    """Restore a fresh engine's optimizer state from the `optimizer_tensors` of all ranks together."""
    optimizer = inner_optimizer(engine)
    sizes = {slot.name: slot.count for slots in engine.module.slots.values() for slot in slots}
    whole = assemble_fragments(sizes, stored)
    for fragment in local_fragments(engine):
        state, stored_state = optimizer.state[fragment.owner], whole.get(fragment.name)
        if stored_state is None:
            continue
        for moment in MOMENTS:
            if moment not in state:
                state[moment] = torch.zeros_like(fragment.owner, memory_format=torch.preserve_format)
            part = stored_state[moment].narrow(0, fragment.start, fragment.count)
            state[moment].view(-1).narrow(0, fragment.offset, fragment.count).copy_(part)
        state["step"] = stored_state["step"].clone().reshape(())


def assemble_fragments(
    sizes: dict[str, int], stored: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the whole optimizer state, tensor name -> moment -> all elements, from stored fragments.

    Args:
        sizes: Number of elements of each tensor.
        stored: `optimizer_tensors` of all ranks.
    """
    whole: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        name, _, place = key.rpartition("@")
        start, _, moment = place.partition(".")
        state = whole.setdefault(name, {})
        if moment == "step":
            state["step"] = tensor
        else:
            if moment not in state:
                state[moment] = torch.zeros(sizes[name], dtype=tensor.dtype)
            state[moment].narrow(0, int(start), len(tensor)).copy_(tensor)
    return whole
