"""Merged models: equal logits, no adapters, and an unchanged original."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models.adapters.adapted_linear import NotMergeableError
from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.injection import adapted_layers
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.inference.merging import merge_task
from models.relevance import RelevanceModel

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"transform": "diagonal"},
    {"task_layers": 1},
    *[
        {"method": method}
        for method in (
            LoRAConfig,
            PerTaskLoRAConfig,
            MultiLoRAConfig,
            MoELoRAConfig,
            DoRAConfig,
            MTLoRAConfig,
        )
    ],
    {"method": MTLoRAConfig, "mode": "matrix", "task_layers": 2},
]


def task_logits(model: RelevanceModel, batch: Batch, task: int) -> torch.Tensor:
    return model(batch[0], batch[1], torch.full((6,), task))[:, : model.heads.num_labels_T[task]]


@pytest.mark.parametrize("kind", ("llama", "bert"))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_merged_model_equals_the_adapted_one(
    fresh_model: FreshModel, batch: Batch, kind: str, settings: dict[str, Any]
) -> None:
    model = fresh_model(kind, stir=7, **settings)
    for task in range(3):
        merged = merge_task(model, task)
        torch.testing.assert_close(
            merged(batch[0], batch[1]), task_logits(model, batch, task), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_merging_leaves_the_model_unchanged(
    fresh_model: FreshModel, batch: Batch, dtype: torch.dtype
) -> None:
    model = fresh_model(stir=7)
    model.trunk.to(dtype)
    for layer in adapted_layers(model).values():
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = merge_task(model, 0)(batch[0], batch[1])
    for task in (1, 2, 0):
        last = merge_task(model, task)(batch[0], batch[1])
    assert torch.equal(first, last)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merged_weights_are_rounded_once_from_float32(fresh_model: FreshModel) -> None:
    model = fresh_model(stir=7)
    expected = {name: layer.merged_weight(1) for name, layer in adapted_layers(model.trunk).items()}
    for layer in adapted_layers(model).values():
        layer.base.to(torch.bfloat16)
        layer.base.weight.data.copy_(layer.base.weight.data)
    pristine = {name: layer.base.weight.float() for name, layer in adapted_layers(model.trunk).items()}
    merged = merge_task(model, 1).trunk
    for name, layer in adapted_layers(model.trunk).items():
        down_KD, up_OK = layer.fold(1)
        weight_OD = merged.get_submodule(name).weight
        assert weight_OD.dtype == torch.bfloat16
        assert torch.equal(weight_OD, torch.addmm(pristine[name], up_OK, down_KD).bfloat16())
        assert (weight_OD.float() - expected[name]).abs().max() < 0.02 * expected[name].abs().max()


def test_merged_model_is_frozen_and_shares_unadapted_tensors(fresh_model: FreshModel) -> None:
    model = fresh_model(stir=7)
    merged = merge_task(model, 2)
    assert not adapted_layers(merged)
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert merged.trunk.embed_tokens.weight is model.trunk.embed_tokens.weight
    assert merged.trunk.layers[0].mlp.up_proj.weight is model.trunk.layers[0].mlp.up_proj.weight
    assert type(merged.trunk.layers[0].self_attn.q_proj) is nn.Linear
    names = [name for name, module in model.trunk.named_modules() if isinstance(module, nn.Linear)]
    assert [name.removesuffix(".base") for name in names] == [
        n for n, m in merged.trunk.named_modules() if isinstance(m, nn.Linear)
    ]


def test_training_continues_after_a_merge(fresh_model: FreshModel, batch: Batch) -> None:
    model = fresh_model(stir=7)
    merge_task(model, 0)
    model(*batch)[:, :2].sum().backward()
    assert all(parameter.grad is not None for parameter in model.trainable_state().values())


def test_non_finite_merged_weight_is_refused_by_name(fresh_model: FreshModel) -> None:
    model = fresh_model(stir=7)
    with torch.no_grad():
        model.trunk.layers[1].self_attn.v_proj.up_ONR[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"merged weight of layers\.1\.self_attn\.v_proj is not finite"):
        merge_task(model, 0)


@pytest.mark.parametrize("task", (-1, 3))
def test_unknown_task_is_refused(fresh_model: FreshModel, task: int) -> None:
    with pytest.raises(ValueError, match=f"task {task} does not exist; this model has tasks 0 to 2"):
        merge_task(fresh_model(), task)


def test_token_routed_method_cannot_be_merged(fresh_model: FreshModel) -> None:
    with pytest.raises(NotMergeableError, match="hydra_lora mixes its up-projections for each token"):
        merge_task(fresh_model(stir=7, method=HydraLoRAConfig), 0)
