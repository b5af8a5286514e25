"""Prefix caching: tokens that several rows begin with go through the model once.

Shape legend: B rows, G prefixes, S tokens of a row after its prefix, P tokens of the longest prefix, H
key-value heads, E width of a head, D width, C labels of the task.
"""

from dataclasses import dataclass
from typing import Any

import torch

from models.heads import pool
from models.inference.merging import MergedModel
from models.transformers_internals import cached_states


@dataclass(frozen=True)
class PrefixStates:
    """Keys and values of some prefixes, padded on the right."""

    keys: tuple[torch.Tensor, ...]  # (G, H, P, E) of each layer
    values: tuple[torch.Tensor, ...]  # (G, H, P, E) of each layer
    length_G: torch.Tensor
    # whether prefixes differ in length; given by the caller, because reading it from a GPU would block
    is_padded: bool


@torch.inference_mode()
def encode_prefixes(
    model: MergedModel,
    ids_GP: torch.Tensor,
    mask_GP: torch.Tensor,
    is_padded: bool,
    root: PrefixStates | None = None,
) -> PrefixStates:
    """Compute a decoder's keys and values of prefixes.

    Args:
        model: The model of one task.
        ids_GP: Token ids, padded on the right.
        mask_GP: 1 for real tokens, 0 for padding.
        is_padded: Whether there is any padding.
        root: A single prefix that all these prefixes follow.
    """
    prefix_G = torch.zeros(len(ids_GP), dtype=torch.long, device=ids_GP.device)
    cache = _build_cache(model, root, prefix_G)
    _last_states(model, ids_GP, root, prefix_G, cache)
    length_G = mask_GP.sum(dim=1) + (0 if root is None else root.length_G)
    keys, values = cached_states(cache)
    return PrefixStates(keys, values, length_G, is_padded)


@torch.inference_mode()
def forward_with_prefix(
    model: MergedModel,
    ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
    prefixes: PrefixStates,
    prefix_B: torch.Tensor,
) -> torch.Tensor:
    """Return the logits (B, C) that `model` gives for the whole rows.

    Args:
        model: The model of one task.
        ids_BS: Token ids after the prefix, at least one per row, padded on the right.
        mask_BS: 1 for real tokens, 0 for padding.
        prefixes: The encoded prefixes.
        prefix_B: The index of each row's prefix.
    """
    cache = _build_cache(model, prefixes, prefix_B)
    hidden_BSD = _last_states(model, ids_BS, prefixes, prefix_B, cache)
    return model.head(pool(hidden_BSD, mask_BS, model.pooling))


def _build_cache(model: MergedModel, prefixes: PrefixStates | None, prefix_B: torch.Tensor) -> Any:
    """Return a transformers cache with the keys and values of each row's prefix."""
    from transformers import DynamicCache

    trunk: Any = model.trunk
    cache = DynamicCache(config=trunk.config)
    if prefixes is None:
        return cache

    def select_rows(states: torch.Tensor) -> torch.Tensor:
        if len(states) == 1:
            return states.expand(len(prefix_B), -1, -1, -1)  # without a copy
        return states[prefix_B]

    for layer, (keys, values) in enumerate(zip(prefixes.keys, prefixes.values, strict=True)):
        cache.update(select_rows(keys), select_rows(values), layer)
    return cache


def _last_states(
    model: MergedModel,
    ids_BS: torch.Tensor,
    prefixes: PrefixStates | None,
    prefix_B: torch.Tensor,
    cache: Any,
) -> torch.Tensor:
    """Return the trunk's last hidden states (B, S, D); add the keys and values of these tokens to `cache`."""
    trunk: Any = model.trunk
    position_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    if prefixes is None:
        return trunk(
            input_ids=ids_BS, position_ids=position_S[None], past_key_values=cache, use_cache=True
        ).last_hidden_state
    length_B = prefixes.length_G[prefix_B]
    mask = None
    # padding between a prefix and its row must be masked; causality hides the padding after a row
    if prefixes.is_padded:
        is_real_BP = torch.arange(prefixes.keys[0].shape[2], device=ids_BS.device)[None] < length_B[:, None]
        mask = torch.cat([is_real_BP, torch.ones_like(ids_BS, dtype=torch.bool)], dim=1).long()
    position_BS = length_B[:, None] + position_S[None]
    return trunk(
        input_ids=ids_BS, attention_mask=mask, position_ids=position_BS, past_key_values=cache, use_cache=True
    ).last_hidden_state
