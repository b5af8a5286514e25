"""Private and undocumented APIs of transformers, each with its reason.

Shape legend: G prefixes, H key-value heads, P tokens, E width of a head. Of a Swin stage: B images, L
positions of its map, C channels, N windows of all images, W positions of a window. Y stands for B, or T * B
where task streams are rows.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Size = tuple[int, int]  # height and width


def attention_implementation(trunk: Any) -> str:
    """Return the name of a model's attention function; there is only a public setter."""
    return str(trunk.config._attn_implementation)


def attention_function(trunk: Any) -> Callable[..., Any] | None:
    """Return a model's attention as a function of queries, keys and values, None if it has none.

    `sdpa` is registered in transformers. `eager` is a function of each architecture's own module, which
    transformers looks up in the same way.
    """
    from transformers import AttentionInterface

    implementation = attention_implementation(trunk)
    if implementation == "sdpa":
        return AttentionInterface()["sdpa"]  # type: ignore[no-any-return]
    if implementation == "eager":
        return getattr(sys.modules[type(trunk).__module__], "eager_attention_forward", None)
    return None


def register_attention(name: str, attend: Callable[..., Any], mask_of: str) -> None:
    """Register an attention function that takes the same masks as the implementation `mask_of`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, AttentionMaskInterface()[mask_of])


def remove_quantization_config(model: Any) -> None:
    """Mark a model as not quantised, once none of its linears belongs to the quantising library.

    Otherwise float32 weights from gguf cannot be saved, and exports would have to be quantised.
    """
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    for name in ("quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, name):
            delattr(model, name)


def cached_states(cache: Any) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return each layer's keys and values (G, H, P, E); a DynamicCache has no public getter."""
    keys = tuple(layer.keys for layer in cache.layers)
    values = tuple(layer.values for layer in cache.layers)
    return keys, values


class SwinWindows(NamedTuple):
    """The attention windows of a Swin block's input."""

    states_NWC: torch.Tensor
    mask: torch.Tensor | None  # hides positions that the shift brought together
    padded_size: Size  # of the map, in whole windows


def partition_windows(block: Any, hidden_BLC: torch.Tensor, size: Size) -> SwinWindows:
    """Normalize a map and cut it into windows, as `SwinLayer.forward` does before attention."""
    from transformers.models.swin.modeling_swin import window_partition

    block.set_shift_and_window_size(size)
    padded_BHWC, _ = block.maybe_pad(block.layernorm_before(hidden_BLC).unflatten(1, size), *size)
    padded_size = (padded_BHWC.shape[1], padded_BHWC.shape[2])
    states_NWC = window_partition(block.cyclic_shift(padded_BHWC), block.window_size).flatten(1, 2)
    mask = block.get_attn_mask(*padded_size, dtype=states_NWC.dtype, device=states_NWC.device)
    return SwinWindows(states_NWC, mask, padded_size)


def join_windows(block: Any, states_NWC: torch.Tensor, padded_size: Size, size: Size) -> torch.Tensor:
    """Join windows to a map (Y, L, C), as `SwinLayer.forward` does after attention."""
    from transformers.models.swin.modeling_swin import window_reverse

    square = block.dropout(states_NWC).unflatten(1, (block.window_size, block.window_size))
    map_YHWC = block.cyclic_shift(window_reverse(square, block.window_size, *padded_size), reverse=True)
    return map_YHWC[:, : size[0], : size[1]].flatten(1, 2)
