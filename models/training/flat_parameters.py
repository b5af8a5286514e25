"""Flat parameters: the trainable tensors of each optimizer group as one parameter.

An engine and an optimizer spend time on each tensor: hooks, buckets, kernel launches. With hundreds of small
tensors that time dominates a step. Here the layers get views of one flat parameter per group. Results are the
same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.relevance import RelevanceModel


@dataclass(frozen=True)
class Slot:
    """The place of a model's tensor in its group's flat parameter."""

    name: str
    module: nn.Module  # the tensor's owner
    attribute: str  # the tensor's name in `module`
    shape: torch.Size
    start: int  # offset in the flat parameter

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """Return this tensor as a view of its group's flat tensor."""
        return flat.narrow(0, self.start, self.count).view(self.shape)


class FlatModel(nn.Module):
    """A relevance model whose only trainable parameters are flat ones, named after their groups.

    The tensors of the wrapped model become views. Each forward pass binds them again, because an engine may
    move the parameters between passes.
    """

    def __init__(self, model: RelevanceModel) -> None:
        super().__init__()
        self.model = model
        self.slots: dict[str, list[Slot]] = {}
        names = {id(parameter): name for name, parameter in model.trainable_state().items()}
        for group, parameters in model.parameter_groups().items():
            self.slots[group], start = [], 0
            for parameter in parameters:
                name = names[id(parameter)]
                module_name, _, attribute = name.rpartition(".")
                module = model.get_submodule(module_name)
                self.slots[group].append(Slot(name, module, attribute, parameter.shape, start))
                start += parameter.numel()
            flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
            self.register_parameter(group, nn.Parameter(flat))
        for slots in self.slots.values():
            for slot in slots:
                delattr(slot.module, slot.attribute)
        # if all layers use projections in one dtype, the flat parameter is cast as a whole
        layers = adapted_layers(model).values()
        dtypes = {layer.dtype for layer in layers}
        self.cast = (
            {"projections": dtypes.pop()}
            if len(dtypes) == 1 and all(layer.CASTS_PROJECTIONS for layer in layers)
            else {}
        )
        self.bind_views()

    def forward(self, *args: Any) -> torch.Tensor:
        """Return the logits of `RelevanceModel.forward`."""
        self.bind_views()
        return self.model(*args)  # type: ignore[no-any-return]

    def bind_views(self) -> None:
        """Set the model's tensors to differentiable views of the current flat parameters."""
        for group, slots in self.slots.items():
            flat = self.get_parameter(group)
            tensors = _split_views(flat.to(self.cast.get(group, flat.dtype)), slots)
            for slot, tensor in zip(slots, tensors, strict=True):
                # nn.Module's own __setattr__ takes ten times as long
                slot.module.__dict__[slot.attribute] = tensor

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the flat parameter of each group."""
        return {group: [self.get_parameter(group)] for group in self.slots}

    def trainable_state(self) -> dict[str, nn.Parameter]:
        """Return the flat parameters by group."""
        return {group: self.get_parameter(group) for group in self.slots}

    def split_by_name(self, flats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the model's tensors by name, as views of the flat tensors of the groups."""
        return {slot.name: slot.view(flats[group]) for group, slots in self.slots.items() for slot in slots}


def _split_views(flat: torch.Tensor, slots: Sequence[Slot]) -> list[torch.Tensor]:
    """Return the tensors of slots that fill a flat tensor, in few operations forward and backward."""
    shapes = {slot.shape for slot in slots}
    if len(shapes) == 1:
        return list(flat.view(len(slots), *shapes.pop()).unbind(0))
    # one split for all: its backward pass concatenates once
    views = flat.split([slot.count for slot in slots])
    return [view.view(slot.shape) for slot, view in zip(slots, views, strict=True)]
