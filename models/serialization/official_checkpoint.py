"""Load weights of the official MTL-LoRA code (github.com/pUmpKin-Co/MTL-LoRA) into a relevance model.

Its checkpoints contain only tensors: the adapter's config must repeat alpha, tau and the targets of the
training. They are pickles: read them with torch.load and `weights_only=True`.

The official code adds a random frozen bias to linears that have none, and does not save it. So on a Llama the
logits differ from those of the training, here as in the official code after a reload.

Shape legend: D width in, O width out, R rank, N up-projections, T tasks.
"""

from collections.abc import Callable

import torch

from models.adapters.injection import adapted_layers
from models.adapters.mtl_lora import MTLLoRALinear
from models.relevance import RelevanceModel

# official name -> our parameter, and the conversion of its tensor
CONVERSIONS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "lora_A": ("down_RD", lambda tensor: tensor.squeeze(0)),  # (1, R, D)
    "lora_lambdas": ("transform", lambda tensor: tensor),  # (T, R, R) or (T, R)
    "lora_B": ("up_ONR", lambda tensor: tensor.transpose(0, 1)),  # (N, O, R)
    "lora_B_w": ("mix_TN", lambda tensor: tensor),  # (T, N)
}


@torch.no_grad()
def load_official(model: RelevanceModel, tensors: dict[str, torch.Tensor]) -> None:
    """Set the adapters of an `mtl_lora` model from official tensors; the heads stay.

    Args:
        model: The model.
        tensors: Tensors by official name, such as `model.layers.0.self_attn.q_proj.lora_A`.

    Raises:
        ValueError: A tensor is missing, unknown or of another shape; nothing is set.
    """
    layers = {
        name: layer for name, layer in adapted_layers(model.trunk).items() if isinstance(layer, MTLLoRALinear)
    }
    if not layers:
        raise ValueError(
            "this model has no mtl_lora layers for the official weights; set adapter.method to mtl_lora"
        )
    expected = {
        f"{name}.{official_name}": (layer, own_name)
        for name, layer in layers.items()
        for official_name, (own_name, _) in CONVERSIONS.items()
    }
    converted: dict[str, torch.Tensor] = {}
    problems = []
    for full_name, tensor in tensors.items():
        name = next((name for name in expected if full_name == name or full_name.endswith("." + name)), None)
        if name is None:
            problems.append(f"{full_name} belongs to no adapted layer")
            continue
        if name in converted:
            problems.append(f"{full_name} occurs twice")
            continue
        layer, own_name = expected[name]
        _, convert = CONVERSIONS[name.rpartition(".")[2]]
        converted[name] = convert(tensor)
        shape = layer.get_parameter(own_name).shape
        if converted[name].shape != shape:
            problems.append(f"{full_name} is {tuple(tensor.shape)}, the model's {own_name} is {tuple(shape)}")
    problems += [f"{name} is missing" for name in expected if name not in converted]
    if problems:
        raise ValueError(f"this checkpoint is of another model or config: {'; '.join(problems[:5])}")
    for name, (layer, own_name) in expected.items():
        layer.get_parameter(own_name).copy_(converted[name])
