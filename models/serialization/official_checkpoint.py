"""Weights of the official MTL-LoRA code (github.com/pUmpKin-Co/MTL-LoRA) in our layers.

Its checkpoints hold the tensors alone: alpha, tau and the targets must be given as they were in training, in
the adapter's config. The official code also gives linears that have no bias a random frozen one and does not
save it, so what such a checkpoint was trained with beside these tensors is lost: on a Llama the logits differ
from those of its training, here as in the official code after a reload. They are pickles: read them with
torch.load and `weights_only=True`.

Shape legend: D width in, O width out, R rank, N up-projections, T tasks.
"""

from collections.abc import Callable

import torch

from models.adapters.injection import adapted_layers
from models.adapters.mtl_lora import MTLLoRALinear
from models.relevance import RelevanceModel

# official name -> our parameter, and how to turn one into the other
CONVERSIONS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "lora_A": ("down_RD", lambda tensor: tensor.squeeze(0)),  # (1, R, D)
    "lora_lambdas": ("transform", lambda tensor: tensor),  # (T, R, R) or (T, R)
    "lora_B": ("up_ONR", lambda tensor: tensor.transpose(0, 1)),  # (N, O, R)
    "lora_B_w": ("mix_TN", lambda tensor: tensor),  # (T, N)
}


@torch.no_grad()
def load_official(model: RelevanceModel, tensors: dict[str, torch.Tensor]) -> None:
    """Set the adapters of an `mtl_lora` model from official tensors, such as
    `model.layers.0.self_attn.q_proj.lora_A`; heads stay.

    ValueError names what is missing, unknown or of another shape; then nothing is set.
    """
    layers = {
        name: layer for name, layer in adapted_layers(model.trunk).items() if isinstance(layer, MTLLoRALinear)
    }
    if not layers:
        raise ValueError(
            "this model has no mtl_lora layers to put the official weights into; set adapter.method to "
            "mtl_lora"
        )
    wanted = {
        f"{name}.{theirs}": (layer, ours)
        for name, layer in layers.items()
        for theirs, (ours, _) in CONVERSIONS.items()
    }
    found: dict[str, torch.Tensor] = {}
    problems = []
    for full_name, tensor in tensors.items():
        name = next((name for name in wanted if full_name == name or full_name.endswith("." + name)), None)
        if name is None or name in found:
            problems.append(f"{full_name} is {'of no adapted layer' if name is None else 'there twice'}")
            continue
        layer, ours = wanted[name]
        found[name] = CONVERSIONS[name.rpartition(".")[2]][1](tensor)
        if found[name].shape != layer.get_parameter(ours).shape:
            problems.append(
                f"{full_name} is {tuple(tensor.shape)}, the model's {ours} is "
                f"{tuple(layer.get_parameter(ours).shape)}"
            )
    problems += [f"{name} is missing" for name in wanted if name not in found]
    if problems:
        raise ValueError(f"this checkpoint is of another model or config: {'; '.join(problems[:5])}")
    for name, (layer, ours) in wanted.items():
        layer.get_parameter(ours).copy_(found[name])
