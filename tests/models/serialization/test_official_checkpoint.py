"""Loading of a synthetic checkpoint with the official names, compared with the official computation."""

from collections.abc import Callable

import pytest
import torch

from models.adapters.injection import adapted_layers
from models.adapters.lora import LoRAConfig
from models.relevance import RelevanceModel
from models.serialization.official_checkpoint import load_official

FreshModel = Callable[..., RelevanceModel]
R, N, T = 4, 3, 3


def checkpoint(
    model: RelevanceModel, prefix: str = "model.", diagonal: bool = False
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, layer in adapted_layers(model.trunk).items():
        D, O = layer.base.in_features, layer.base.out_features
        shapes = {
            "lora_A": (1, R, D),
            "lora_lambdas": (T, R) if diagonal else (T, R, R),
            "lora_B": (N, O, R),
            "lora_B_w": (T, N),
        }
        tensors |= {
            f"{prefix}{name}.{part}": torch.randn(shape, generator=generator)
            for part, shape in shapes.items()
        }
    return tensors


def official_output(
    x_BSD: torch.Tensor,
    weight_OD: torch.Tensor,
    part: dict[str, torch.Tensor],
    task_B: torch.Tensor,
    alpha: float,
    tau: float,
) -> torch.Tensor:
    """Return x A^T Lambda^T, times the task's softmax-weighted sum of B, times alpha / r, for each row."""
    share_TN = torch.softmax(part["lora_B_w"].float() / tau, dim=1)
    up_TOR = torch.einsum("tn,nor->tor", share_TN, part["lora_B"])
    down_BRD = part["lora_A"].index_select(0, torch.zeros_like(task_B))
    u_BSR = torch.bmm(x_BSD, down_BRD.transpose(1, 2))
    lambdas = part["lora_lambdas"][task_B]
    v_BSR = u_BSR * lambdas[:, None] if lambdas.dim() == 2 else torch.bmm(u_BSR, lambdas.transpose(1, 2))
    return x_BSD @ weight_OD.T + alpha / R * torch.bmm(v_BSR, up_TOR[task_B].transpose(1, 2))


@pytest.mark.parametrize("prefix", ("model.", "", "base_model.model.model."))
@pytest.mark.parametrize("transform", ("full", "diagonal"))
def test_loaded_layers_match_the_official_computation(
    fresh_model: FreshModel, prefix: str, transform: str
) -> None:
    model = fresh_model(transform=transform, lora_alpha=16.0, mixture_temperature=0.1)
    tensors = checkpoint(model, prefix, diagonal=transform == "diagonal")
    load_official(model, tensors)
    task_B = torch.tensor([2, 0, 1, 2])
    for name, layer in adapted_layers(model.trunk).items():
        part = {
            key: tensors[f"{prefix}{name}.{key}"] for key in ("lora_A", "lora_lambdas", "lora_B", "lora_B_w")
        }
        x_BSD = torch.randn(4, 5, layer.base.in_features)
        with model.routing.task_context(task_B):
            output = layer(x_BSD)
        torch.testing.assert_close(
            output, official_output(x_BSD, layer.base.weight, part, task_B, 16.0, 0.1), rtol=1e-4, atol=1e-4
        )


def test_mismatched_checkpoint_is_refused_without_changes(fresh_model: FreshModel) -> None:
    model = fresh_model()
    before = {name: tensor.detach().clone() for name, tensor in model.trainable_state().items()}
    whole = checkpoint(model)
    first = next(iter(whole))
    cases = [
        (
            {name: tensor for name, tensor in whole.items() if name != first},
            f"{first.removeprefix('model.')} is missing",
        ),
        (
            {**whole, "model.layers.9.self_attn.q_proj.lora_A": torch.zeros(1)},
            r"layers\.9\.self_attn\.q_proj\.lora_A belongs to no adapted layer",
        ),
        (
            {**whole, first: torch.zeros(1, R + 1, 32)},
            r"lora_A is \(1, 5, 32\), the model's down_RD is \(4, 32\)",
        ),
        ({**whole, "x." + first: whole[first]}, "occurs twice"),
        (checkpoint(model, diagonal=True), r"lora_lambdas is \(3, 4\), the model's transform is \(3, 4, 4\)"),
    ]
    for tensors, message in cases:
        with pytest.raises(ValueError, match=message):
            load_official(model, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trainable_state().items())


def test_official_weights_need_mtl_lora_layers(fresh_model: FreshModel) -> None:
    model = fresh_model(method=LoRAConfig)
    with pytest.raises(ValueError, match="has no mtl_lora layers"):
        load_official(model, checkpoint(model))
