"""The relevance model: a frozen trunk with adapters, pooled, with one head a task.

Shape legend: B rows, S tokens, D width, T tasks, C labels of the finest task.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers, inject, transformer_layers
from models.adapters.routing import TaskRouting
from models.backbone import Backbone
from models.config import ModelConfig
from models.heads import Pooling, TaskHeads, pool, trunk_states
from models.last_layer import ReadTokens
from models.packing import PackedRows, attend_as_before, attend_row_by_row, last_token_states


class RelevanceModel(nn.Module):
    """Judges query-ad pairs of several tasks in one batch."""

    def __init__(self, trunk: nn.Module, heads: TaskHeads, routing: TaskRouting, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.routing = routing
        self.pooling = pooling
        self.adapted = list(adapted_layers(trunk).values())
        self.read_tokens: ReadTokens | None = None  # where it takes `packed`

    def forward(
        self,
        input_ids_BS: torch.Tensor,
        mask_BS: torch.Tensor,
        task_B: torch.Tensor,
        packed: PackedRows | None = None,
    ) -> torch.Tensor:
        """Token ids padded on the right, their mask (1 real, 0 padding), task ids -> logits (B, C); -inf
        beyond a task's labels.

        With `packed`, which `take_packed` allows, the ids are those (1, N) of `packing.pack`, and the mask is
        (B, 1), of the rows' last tokens. Task ids are not checked here: on a GPU that would wait for the
        device. Check them where rows are collated.
        """
        return self.heads(self.pooled(input_ids_BS, mask_BS, task_B, packed), task_B)

    def pooled(
        self,
        input_ids_BS: torch.Tensor,
        mask_BS: torch.Tensor,
        task_B: torch.Tensor,
        packed: PackedRows | None = None,
    ) -> torch.Tensor:
        """What the heads read (B, D)."""
        with self.tasks(task_B if packed is None else packed.task_1N):
            if packed is None:
                hidden_BSD = trunk_states(self.trunk, input_ids_BS, mask_BS, self.pooling)
            else:
                assert self.read_tokens is not None, "take_packed was called"
                self.read_tokens.begin(packed.last_B)
                hidden_BSD = last_token_states(self.trunk, input_ids_BS, packed)
        return pool(hidden_BSD, mask_BS, self.pooling)

    def take_packed(self) -> None:
        """Have `forward` take `packed` rows too. Call it before `compile_layers`. ValueError: the trunk's
        attention cannot be had so.
        """
        attend_row_by_row(self.trunk)
        if self.read_tokens is None:
            self.read_tokens = ReadTokens(transformer_layers(self.trunk)[1][-1], self.routing)

    def take_padded_only(self) -> None:
        """Undo `take_packed`."""
        attend_as_before(self.trunk)
        if self.read_tokens is not None:
            self.read_tokens.remove()
            self.read_tokens = None

    @contextmanager
    def tasks(self, task: torch.Tensor) -> Iterator[None]:
        """While entered, adapted layers run with these ids, of rows (B,) or of tokens (B, S)."""
        with self.routing.tasks(task) as in_flight:
            in_flight.prepare(self.adapted)
            yield

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its states, with the task ids of its
        own forward pass.
        """
        trunk: Any = self.trunk
        trunk.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": self.routing.checkpoint_contexts}
        )

    def trainable_state(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name: adapters and heads, never the backbone."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained tensors by what they are: projections, transforms, mixtures, heads; groups without a
        tensor are left out.
        """
        groups: dict[str, list[nn.Parameter]] = {
            "projections": [],
            "transforms": [],
            "mixtures": [],
            "heads": list(self.heads.parameters()),
        }
        for layer in adapted_layers(self).values():
            for name, parameter in layer.named_parameters(recurse=False):
                groups[layer.GROUPS[name]].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters}

    def load_trainable_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the trained tensors. ValueError names what is missing, unknown or of another shape."""
        mine = self.trainable_state()
        problems = [f"{name} is missing" for name in mine.keys() - tensors.keys()]
        problems += [f"{name} is unknown" for name in tensors.keys() - mine.keys()]
        problems += [
            f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(mine[name].shape)}"
            for name in mine.keys() & tensors.keys()
            if tensors[name].shape != mine[name].shape
        ]
        if problems:
            raise ValueError(f"these weights are of another model: {'; '.join(sorted(problems)[:5])}")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(tensors[name])

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, total) numbers."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def build_model(config: ModelConfig, backbone: Backbone, seed: int) -> RelevanceModel:
    """A fresh model on a loaded backbone, whose trunk it takes over. The same seed gives the same numbers."""
    routing = inject(backbone.trunk, config.adapter, len(config.num_labels_T), seed)
    heads = TaskHeads(backbone.width, config.num_labels_T)
    direction_D = backbone.answer_direction()
    if direction_D is not None:
        heads.start_from_direction(direction_D, HEAD_SCALE)
    else:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            heads.weight_KD.normal_(0.0, backbone.width**-0.5, generator=generator)
    return RelevanceModel(backbone.trunk, heads, routing, backbone.pooling).eval()


HEAD_SCALE = 3.0  # logits from worst to best label span this many times the yes-minus-no logit
