"""Compile the layers of a relevance model with torch.compile."""

from typing import Any

import torch

from models.adapters.injection import adapted_layers, transformer_layers
from models.relevance import RelevanceModel

# of one layer's code: layers with and without adapters, batches of one row; beyond torch's own limit of 8 it
# would not compile
COMPILED_FORMS = 64


def compile_layers(model: RelevanceModel) -> None:
    """Have torch.compile fuse the small operations of each of the trunk's layers, for batches of any shape.
    Compiling happens in the first passes; parameters must stay where they are from then on.
    """
    torch._dynamo.config.recompile_limit = COMPILED_FORMS
    # or sizes that happen to be alike in the first batch, as of tasks in it and of a rank, would be taken for
    # the same, and compiled anew later
    torch.fx.experimental._config.use_duck_shape = False
    # or it would first try to keep factors that never change open, and then start over
    torch._dynamo.config.specialize_float = True
    layers = transformer_layers(model.trunk)[1]
    if adapted_layers(layers[0]):
        # as all other layers' input has: without a gradient the first would be compiled on its own; it takes
        # a few products in one layer
        trunk: Any = model.trunk
        trunk.enable_input_require_grads()
    # the last layer does little where rows are packed, and would be compiled on its own
    for layer in layers if model.read_tokens is None else layers[:-1]:
        layer.compile(dynamic=True)
