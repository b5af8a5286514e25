"""The relevance model: a frozen trunk with adapters, a pooling, and one output head per task.

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
from models.last_layer import ReadTokenSelector
from models.packing import PackedRows, disable_packed_attention, enable_packed_attention, last_token_states

HEAD_SCALE = 3.0  # initial logits of the worst and the best label differ by this many yes-minus-no logits


class RelevanceModel(nn.Module):
    """Multi-task classifier of query-ad pairs; a batch may mix tasks."""

    def __init__(self, trunk: nn.Module, heads: TaskHeads, routing: TaskRouting, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.routing = routing
        self.pooling = pooling
        self.adapted = list(adapted_layers(trunk).values())
        self.last_layer_selector: ReadTokenSelector | None = None  # set while packing is enabled

    def forward(
        self,
        input_ids_BS: torch.Tensor,
        mask_BS: torch.Tensor,
        task_B: torch.Tensor,
        packed: PackedRows | None = None,
    ) -> torch.Tensor:
        """Return the logits (B, C) of each row's task, -inf beyond its labels.

        Task ids are not checked, because that would wait for a GPU. Check them where rows are collated.

        Args:
            input_ids_BS: Token ids, padded on the right; (1, N) of `packing.pack_rows` for packed rows.
            mask_BS: 1 for real tokens, 0 for padding; ones (B, 1) for packed rows.
            task_B: Task ids.
            packed: The layout of packed rows; call `enable_packing` first.
        """
        return self.heads(self.pooled_states(input_ids_BS, mask_BS, task_B, packed), task_B)

    def pooled_states(
        self,
        input_ids_BS: torch.Tensor,
        mask_BS: torch.Tensor,
        task_B: torch.Tensor,
        packed: PackedRows | None = None,
    ) -> torch.Tensor:
        """Return the input of the heads (B, D). The arguments are those of `forward`."""
        with self.task_context(task_B if packed is None else packed.task_1N):
            if packed is None:
                hidden_BSD = trunk_states(self.trunk, input_ids_BS, mask_BS, self.pooling)
            else:
                assert self.last_layer_selector is not None, "packed rows need enable_packing"
                self.last_layer_selector.begin(packed.last_B)
                hidden_BSD = last_token_states(self.trunk, input_ids_BS, packed)
        return pool(hidden_BSD, mask_BS, self.pooling)

    def enable_packing(self) -> None:
        """Have `forward` accept packed rows too. Call this before `compile_layers`.

        Raises:
            ValueError: The trunk's attention cannot take packed rows.
        """
        enable_packed_attention(self.trunk)
        if self.last_layer_selector is None:
            self.last_layer_selector = ReadTokenSelector(transformer_layers(self.trunk)[1][-1], self.routing)

    def disable_packing(self) -> None:
        """Undo `enable_packing`."""
        disable_packed_attention(self.trunk)
        if self.last_layer_selector is not None:
            self.last_layer_selector.remove()
            self.last_layer_selector = None

    @contextmanager
    def task_context(self, task: torch.Tensor) -> Iterator[None]:
        """Give the adapted layers these task ids while entered: (B,) of rows or (B, S) of tokens."""
        with self.routing.task_context(task) as context:
            context.prepare(self.adapted)
            yield

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass, with the task ids of its own forward pass."""
        trunk: Any = self.trunk
        trunk.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": self.routing.checkpoint_contexts}
        )

    def trainable_state(self) -> dict[str, nn.Parameter]:
        """Return the trainable tensors of adapters and heads by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable tensors by group: projections, transforms, mixtures, heads."""
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
        """Set the trainable tensors.

        Raises:
            ValueError: A tensor is missing, unknown or of another shape; nothing is set.
        """
        own = self.trainable_state()
        problems = [f"{name} is missing" for name in own.keys() - tensors.keys()]
        problems += [f"{name} is unknown" for name in tensors.keys() - own.keys()]
        problems += [
            f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(own[name].shape)}"
            for name in own.keys() & tensors.keys()
            if tensors[name].shape != own[name].shape
        ]
        if problems:
            raise ValueError(f"these weights are of another model: {'; '.join(sorted(problems)[:5])}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


def build_model(config: ModelConfig, backbone: Backbone, seed: int) -> RelevanceModel:
    """Build a new model around a loaded backbone, whose trunk it changes.

    Equal seeds give equal weights.
    """
    routing = inject(backbone.trunk, config.adapter, len(config.num_labels_T), seed)
    heads = TaskHeads(backbone.width, config.num_labels_T)
    direction_D = backbone.answer_direction()
    if direction_D is not None:
        heads.init_from_direction(direction_D, HEAD_SCALE)
    else:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            heads.weight_KD.normal_(0.0, backbone.width**-0.5, generator=generator)
    return RelevanceModel(backbone.trunk, heads, routing, backbone.pooling).eval()
