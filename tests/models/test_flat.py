"""Training on flat parameters is training on the model's own tensors."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from models.flat import FlatModel
from models.relevance import RelevanceModel

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
KINDS = ("llama", "bert")


def loss_of(model: RelevanceModel | FlatModel, batch: Batch) -> torch.Tensor:
    return functional.cross_entropy(model(*batch), torch.tensor([1, 4, 2, 0, 3, 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_bit_for_bit_those_of_the_model_s_own_tensors(fresh_model: FreshModel, batch: Batch, kind: str) -> None:
    plain, flat = fresh_model(kind, stir=7), FlatModel(fresh_model(kind, stir=7))
    losses = [loss_of(model, batch) for model in (plain, flat)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    gradients = flat.cut_up({group: parameter.grad for group, parameter in flat.trainable_state().items()})
    assert gradients.keys() == plain.trainable_state().keys()
    assert any(gradient.any() for gradient in gradients.values())
    for name, parameter in plain.trainable_state().items():
        assert torch.equal(gradients[name], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad), name


def test_only_the_flat_parameters_are_trained_one_a_group(fresh_model: FreshModel) -> None:
    groups = {group: sum(p.numel() for p in parameters) for group, parameters in fresh_model().parameter_groups().items()}
    flat = FlatModel(fresh_model())
    trained = {name: parameter.numel() for name, parameter in flat.named_parameters() if parameter.requires_grad}
    assert trained == groups and set(groups) == {"projections", "transforms", "mixtures", "heads"}


def test_the_next_pass_reads_numbers_that_were_moved_elsewhere_meanwhile(fresh_model: FreshModel, batch: Batch) -> None:
    flat, other = FlatModel(fresh_model(stir=7)), fresh_model(stir=8)
    with torch.no_grad():
        wanted = other(*batch)
        assert not torch.equal(flat(*batch), wanted)
        for group, parameters in other.parameter_groups().items():
            flat.get_parameter(group).data = torch.cat([parameter.flatten() for parameter in parameters])
        assert torch.equal(flat(*batch), wanted)


def test_the_model_s_tensors_come_out_as_they_went_in(fresh_model: FreshModel) -> None:
    before = {name: tensor.detach().clone() for name, tensor in fresh_model(stir=7).trainable_state().items()}
    flat = FlatModel(fresh_model(stir=7))
    after = flat.cut_up(flat.trainable_state())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_recomputed_layers_give_the_same_gradients(fresh_model: FreshModel, batch: Batch) -> None:
    plain, recomputed = (FlatModel(fresh_model(stir=7)).train() for _ in range(2))
    recomputed.model.enable_gradient_checkpointing()
    for flat in (plain, recomputed):
        loss_of(flat, batch).backward()
    for name, parameter in plain.trainable_state().items():
        torch.testing.assert_close(recomputed.get_parameter(name).grad, parameter.grad, rtol=1e-6, atol=1e-7, msg=name)
