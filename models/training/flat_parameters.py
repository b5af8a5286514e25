"""Trained tensors laid end to end, for training.

A step over hundreds of small tensors is held up by what an engine and an optimizer do for each of them:
hooks, buckets, launches. Here each group of the optimizer is one flat parameter, and the layers get views of
it. What is computed is the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.relevance import RelevanceModel


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the model lies in its group's flat parameter."""

    name: str
    module: nn.Module  # that has it
    attribute: str
    shape: torch.Size
    start: int

    @property
    def count(self) -> int:
        """Numbers of it."""
        return self.shape.numel()

    def cut(self, flat: torch.Tensor) -> torch.Tensor:
        """This tensor out of all the numbers of its group."""
        return flat.narrow(0, self.start, self.count).view(self.shape)


class FlatModel(nn.Module):
    """A relevance model in training: the flat parameters are its only trained ones, under the names of their
    groups. The model's own tensors are views from here on, set anew in each forward pass, as an engine may
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
                module_name, _, attribute = names[id(parameter)].rpartition(".")
                self.slots[group].append(
                    Slot(
                        names[id(parameter)],
                        model.get_submodule(module_name),
                        attribute,
                        parameter.shape,
                        start,
                    )
                )
                start += parameter.numel()
            self.register_parameter(
                group, nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
            )
        for slots in self.slots.values():
            for slot in slots:
                delattr(slot.module, slot.attribute)
        # where all products take projections in one dtype, they are cast in one piece
        layers = adapted_layers(model).values()
        dtypes = {layer.base.weight.dtype for layer in layers}
        self.cast = (
            {"projections": dtypes.pop()}
            if len(dtypes) == 1 and all(layer.CASTS_PROJECTIONS for layer in layers)
            else {}
        )
        self.set_views()

    def forward(self, *args: Any) -> torch.Tensor:
        """As `RelevanceModel.forward`."""
        self.set_views()
        return self.model(*args)  # type: ignore[no-any-return]

    def set_views(self) -> None:
        """Give the layers the parameters' numbers as they are now, and gradients a way back."""
        for group, slots in self.slots.items():
            # one split and not a cut each: its gradient is put together once
            flat = self.get_parameter(group)
            views = flat.to(self.cast.get(group, flat.dtype)).split([slot.count for slot in slots])
            for slot, view in zip(slots, views, strict=True):
                setattr(slot.module, slot.attribute, view.view(slot.shape))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """One flat parameter for each group."""
        return {group: [self.get_parameter(group)] for group in self.slots}

    def trainable_state(self) -> dict[str, nn.Parameter]:
        """The flat parameters by the names of their groups."""
        return {group: self.get_parameter(group) for group in self.slots}

    def cut_up(self, flats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The model's tensors by their own names, as views of flat ones by group."""
        return {slot.name: slot.cut(flats[group]) for group, slots in self.slots.items() for slot in slots}
