"""Flat parameters give the losses and gradients of the model's own tensors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.adapters import METHODS, load_methods
from models.adapters.lora import LoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.relevance import RelevanceModel
from models.training.flat_parameters import FlatModel
from tests.bench.support.operations import Operations

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
KINDS = ("llama", "bert")

load_methods()


def loss_of(model: RelevanceModel | FlatModel, batch: Batch) -> torch.Tensor:
    return functional.cross_entropy(model(*batch), torch.tensor([1, 4, 2, 0, 3, 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_flat_loss_and_gradients_are_exact(fresh_model: FreshModel, batch: Batch, kind: str) -> None:
    plain, flat = fresh_model(kind, stir=7), FlatModel(fresh_model(kind, stir=7))
    losses = [loss_of(model, batch) for model in (plain, flat)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    gradients = flat.split_by_name(
        {group: parameter.grad for group, parameter in flat.trainable_state().items()}
    )
    assert gradients.keys() == plain.trainable_state().keys()
    assert any(gradient.any() for gradient in gradients.values())
    for name, parameter in plain.trainable_state().items():
        assert torch.equal(
            gradients[name], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ), name


def test_trainable_parameters_are_one_per_group(fresh_model: FreshModel) -> None:
    groups = {
        group: sum(p.numel() for p in parameters)
        for group, parameters in fresh_model().parameter_groups().items()
    }
    flat = FlatModel(fresh_model())
    trained = {
        name: parameter.numel() for name, parameter in flat.named_parameters() if parameter.requires_grad
    }
    assert trained == groups and set(groups) == {"projections", "transforms", "mixtures", "heads"}


def test_forward_reads_moved_parameters(fresh_model: FreshModel, batch: Batch) -> None:
    flat, other = FlatModel(fresh_model(stir=7)), fresh_model(stir=8)
    with torch.no_grad():
        wanted = other(*batch)
        assert not torch.equal(flat(*batch), wanted)
        for group, parameters in other.parameter_groups().items():
            flat.get_parameter(group).data = torch.cat([parameter.flatten() for parameter in parameters])
        assert torch.equal(flat(*batch), wanted)


def test_split_by_name_returns_the_original_tensors(fresh_model: FreshModel) -> None:
    before = {name: tensor.detach().clone() for name, tensor in fresh_model(stir=7).trainable_state().items()}
    flat = FlatModel(fresh_model(stir=7))
    after = flat.split_by_name(flat.trainable_state())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_recomputed_layers_give_the_same_gradients(fresh_model: FreshModel, batch: Batch) -> None:
    plain, recomputed = (FlatModel(fresh_model(stir=7)).train() for _ in range(2))
    recomputed.model.enable_gradient_checkpointing()
    for flat in (plain, recomputed):
        loss_of(flat, batch).backward()
    for name, parameter in plain.trainable_state().items():
        torch.testing.assert_close(
            recomputed.get_parameter(name).grad, parameter.grad, rtol=1e-6, atol=1e-7, msg=name
        )


@pytest.mark.parametrize("method", [method.config for method in METHODS.values()])
def test_projections_on_bfloat16_are_cast_as_a_whole(
    fresh_model: FreshModel, batch: Batch, method: Any
) -> None:
    plain = fresh_model(stir=7, method=method)
    plain.trunk.to(torch.bfloat16)
    for parameter in plain.trainable_state().values():
        parameter.data = parameter.data.float()
    flat = FlatModel(copy.deepcopy(plain))
    losses = [loss_of(model, batch) for model in (plain, flat)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert {parameter.grad.dtype for parameter in flat.trainable_state().values()} == {torch.float32}
    gradients = flat.split_by_name(
        {group: parameter.grad for group, parameter in flat.trainable_state().items()}
    )
    for name, parameter in plain.trainable_state().items():
        assert torch.equal(
            gradients[name], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mtl_lora_adds_three_operations_per_linear(
    fresh_model: FreshModel, batch: Batch, dtype: torch.dtype
) -> None:
    # a GPU waits for launches at batches of a few hundred rows; matrices per linear would take twenty more
    counted: dict[Any, int] = {}
    for method in (LoRAConfig, MTLLoRAConfig):
        model = fresh_model(method=method, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
        model.trunk.to(dtype)
        for parameter in model.trainable_state().values():
            parameter.data = parameter.data.float()
        flat = FlatModel(model)
        loss_of(flat, batch).backward()
        with Operations() as counted_here:
            loss_of(flat, batch).backward()
        counted[method] = counted_here.total
    num_linears, num_shared_operations = 2 * 4, 30  # operations for all linears together
    assert counted[MTLLoRAConfig] <= counted[LoRAConfig] + 3 * num_linears + num_shared_operations


@pytest.mark.parametrize(("method", "views_per_linear"), [(LoRAConfig, 10), (MTLLoRAConfig, 12)])
def test_adapted_linears_need_few_views(
    fresh_model: FreshModel, batch: Batch, method: Any, views_per_linear: int
) -> None:
    # as operations do, they take time on the host that a GPU waits for
    flat = FlatModel(fresh_model(method=method, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")))
    with Operations() as operations:
        loss_of(flat, batch)
    num_views = sum(count for name, count in operations.views.items() if "view" in name)
    assert num_views <= views_per_linear * len(flat.model.adapted), operations.views
