"""Compile the layers of a relevance model with torch.compile."""

from typing import Any

from models.adapters.injection import adapted_layers, transformer_layers
from models.relevance import RelevanceModel
from models.torch_internals import configure_dynamic_compilation

RECOMPILE_LIMIT = 64  # variants of a layer's code; at torch's default of 8 some layers would stay uncompiled


def compile_layers(model: RelevanceModel) -> None:
    """Compile each transformer layer for batches of any shape, which fuses its small operations.

    The first passes compile. Parameters must not move afterwards.
    """
    configure_dynamic_compilation(RECOMPILE_LIMIT)
    layers = transformer_layers(model.trunk)[1]
    if adapted_layers(layers[0]):
        # the other layers' inputs require gradients; without this the first layer would compile separately
        trunk: Any = model.trunk
        trunk.enable_input_require_grads()
    # the last layer does little work on packed rows, and would compile separately
    for layer in layers if model.last_layer_selector is None else layers[:-1]:
        layer.compile(dynamic=True)
