"""Rows that begin alike: what they have in common goes through the model once.

Shape legend: B rows, G prefixes, S tokens of a row behind its prefix, P tokens of the longest prefix, H
key-value heads, E width of a head, C labels of the task.
"""

from dataclasses import dataclass
from typing import Any

import torch

from models.heads import pool
from models.inference.merging import MergedModel


@dataclass(frozen=True)
class Prefixes:
    """Keys and values that the model's layers made of some prefixes, padded on the right."""

    keys: tuple[torch.Tensor, ...]  # of each layer (G, H, P, E)
    values: tuple[torch.Tensor, ...]  # of each layer (G, H, P, E)
    length_G: torch.Tensor
    # whether any is shorter than the longest; said by who knows, as asking a GPU would wait for all it was
    # given before
    padded: bool


@torch.inference_mode()
def read_prefixes(
    model: MergedModel,
    ids_GP: torch.Tensor,
    mask_GP: torch.Tensor,
    padded: bool,
    behind: Prefixes | None = None,
) -> Prefixes:
    """Have a decoder read prefixes: token ids padded on the right, their mask (1 real, 0 padding), and
    whether there is any padding. `behind`: one prefix that all of these follow.
    """
    none_G = torch.zeros(len(ids_GP), dtype=torch.long, device=ids_GP.device)
    cache = _cache(model, behind, none_G)
    _states(model, ids_GP, behind, none_G, cache)
    length_G = mask_GP.sum(dim=1) + (0 if behind is None else behind.length_G)
    return Prefixes(
        tuple(layer.keys for layer in cache.layers),
        tuple(layer.values for layer in cache.layers),
        length_G,
        padded,
    )


@torch.inference_mode()
def judge_behind(
    model: MergedModel,
    ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
    prefixes: Prefixes,
    prefix_B: torch.Tensor,
) -> torch.Tensor:
    """(B, C) of rows whose tokens begin with the prefix of their number `prefix_B`: what `model` gives for
    the whole rows.

    `ids_BS`: what follows the prefix, at least one token a row, padded on the right; `mask_BS`: 1 real, 0
    padding.
    """
    hidden_BSD = _states(model, ids_BS, prefixes, prefix_B, _cache(model, prefixes, prefix_B))
    return model.head(pool(hidden_BSD, mask_BS, model.pooling))


def _cache(model: MergedModel, prefixes: Prefixes | None, prefix_B: torch.Tensor) -> Any:
    """transformers' cache, filled with each row's prefix."""
    from transformers import DynamicCache

    trunk: Any = model.trunk
    cache = DynamicCache(config=trunk.config)
    if prefixes is not None:
        one = len(prefixes.length_G) == 1
        for layer, (keys, values) in enumerate(zip(prefixes.keys, prefixes.values, strict=True)):
            chosen = [
                of_all.expand(len(prefix_B), -1, -1, -1) if one else of_all[prefix_B]
                for of_all in (keys, values)
            ]
            cache.update(chosen[0], chosen[1], layer)
    return cache


def _states(
    model: MergedModel, ids_BS: torch.Tensor, prefixes: Prefixes | None, prefix_B: torch.Tensor, cache: Any
) -> torch.Tensor:
    """The trunk's last states; `cache` grows by the keys and values of these tokens."""
    trunk: Any = model.trunk
    position_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    if prefixes is None:
        return trunk(
            input_ids=ids_BS, position_ids=position_S[None], past_key_values=cache, use_cache=True
        ).last_hidden_state
    length_B = prefixes.length_G[prefix_B]
    mask = None
    # padding between a prefix and its row must not be looked at; behind a row causality hides it
    if prefixes.padded:
        seen_BP = torch.arange(prefixes.keys[0].shape[2], device=ids_BS.device)[None] < length_B[:, None]
        mask = torch.cat([seen_BP, torch.ones_like(ids_BS, dtype=torch.bool)], dim=1).long()
    position_BS = length_B[:, None] + position_S[None]
    return trunk(
        input_ids=ids_BS, attention_mask=mask, position_ids=position_BS, past_key_values=cache, use_cache=True
    ).last_hidden_state
