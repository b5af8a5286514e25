"""Models that are compared: of this project, of PEFT, and as published; all on the same backbone weights.

Shape legend: B rows, C labels.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapter_parameter_count, inject
from models.adapters.lora import LoRAConfig
from models.adapters.routing import TaskRouting
from models.backbone import Backbone
from models.config import AdapterConfig
from models.heads import TaskHeads
from models.inference.merging import MergedModel
from models.inference.task_branching import all_task_logits
from models.relevance import RelevanceModel
from tests.bench.support.published import as_published
from tests.bench.support.timing import NUM_LABELS, SEED, Batch, saved_bytes

NOISE = 0.02  # standard deviation of the noise on new adapters, so that none is zero


def shared_trunk(backbone: Backbone) -> Any:
    """Return a copy of the trunk's modules that shares its weights."""
    tensors = [*backbone.trunk.parameters(), *backbone.trunk.buffers()]
    # deepcopy does not copy what its memo already knows
    return copy.deepcopy(backbone.trunk, {id(tensor): tensor for tensor in tensors})


def finish(trunk: nn.Module, routing: TaskRouting, backbone: Backbone, num_tasks: int) -> RelevanceModel:
    """Return a trunk with heads, and noise on all trained parameters."""
    model = RelevanceModel(
        trunk, TaskHeads(backbone.width, (NUM_LABELS,) * num_tasks), routing, backbone.pooling
    )
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.trainable_state().values():
            parameter += NOISE * torch.randn(parameter.shape, generator=generator)
    return model


def adapted_model(backbone: Backbone, adapter: AdapterConfig, num_tasks: int) -> RelevanceModel:
    """Return a model with this project's adapters."""
    trunk = shared_trunk(backbone)
    return finish(trunk, inject(trunk, adapter, num_tasks, SEED), backbone, num_tasks)


def published_model(backbone: Backbone, adapter: AdapterConfig, num_tasks: int) -> RelevanceModel:
    """Return a model with the same parameters, computed as published."""
    model = adapted_model(backbone, adapter, num_tasks)
    as_published(model.trunk)
    model.adapted = []  # the layers were replaced
    return model


def base_model(backbone: Backbone, num_tasks: int) -> RelevanceModel:
    """Return heads on the bare trunk; in training the gradient runs through all layers, as with adapters."""
    trunk = shared_trunk(backbone).requires_grad_(False)
    trunk.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output.requires_grad_() if module.training else None
    )
    return finish(trunk, TaskRouting(), backbone, num_tasks)


def peft_model(backbone: Backbone, rank: int, num_tasks: int) -> RelevanceModel:
    """Return a model with PEFT's LoRA on the same linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(LoRAConfig().target_modules)
    )
    return finish(get_peft_model(shared_trunk(backbone), config), TaskRouting(), backbone, num_tasks)


def closest_rank(backbone: Backbone, adapter: AdapterConfig, num_tasks: int) -> int:
    """Return the rank at which LoRA has the closest number of parameters."""
    target = adapter_parameter_count(backbone.trunk, adapter, num_tasks)
    return min(
        range(1, 65),
        key=lambda rank: abs(
            adapter_parameter_count(backbone.trunk, LoRAConfig(rank=rank), num_tasks) - target
        ),
    )


# --- timed functions


def train(model: RelevanceModel, batches: Sequence[Batch]) -> None:
    """Run forward and backward of each batch."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()


def loss_of(model: RelevanceModel, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of a batch."""
    return nn.functional.cross_entropy(batch_logits(model, batch), batch.label_B)


def batch_logits(model: RelevanceModel | MergedModel, batch: Batch) -> torch.Tensor:
    """Return the logits (B, C) of a batch."""
    if isinstance(model, MergedModel):
        return model(batch.input_ids_BS, batch.mask_BS)
    return model(batch.input_ids_BS, batch.mask_BS, batch.task_B(len(model.heads.num_labels_T)))


@torch.inference_mode()
def run_batches(model: RelevanceModel | MergedModel, batches: Sequence[Batch]) -> None:
    """Compute the logits of each batch."""
    for batch in batches:
        batch_logits(model, batch)


@torch.inference_mode()
def logits_in_one_pass(model: RelevanceModel, batches: Sequence[Batch]) -> list[dict[int, torch.Tensor]]:
    """Return all tasks' logits of each batch, in one pass per batch."""
    return [all_task_logits(model, batch.input_ids_BS, batch.mask_BS) for batch in batches]


@torch.inference_mode()
def logits_in_passes(model: RelevanceModel, batches: Sequence[Batch]) -> list[dict[int, torch.Tensor]]:
    """Return all tasks' logits of each batch, in one pass per task."""
    tasks = range(len(model.heads.num_labels_T))
    return [
        {
            task: model(batch.input_ids_BS, batch.mask_BS, torch.full_like(batch.label_B, task))
            for task in tasks
        }
        for batch in batches
    ]


def kept_bytes(model: RelevanceModel, batches: Sequence[Batch]) -> int:
    """Return the bytes of activations that the forward passes save for backward, without weights."""
    resident = [*model.parameters(), *model.buffers()]
    return sum(saved_bytes(partial(loss_of, model, batch), resident) for batch in batches)
