"""Packing of a batch for training: no padding goes through the trunk, and a shared prefix goes through once.

All tokens of a pass form one sequence of length N. Every part of a decoder except attention treats tokens
independently, so it never sees padding. Attention gets the rows, unpacked and padded for this one operation.

The first tokens of a task's rows (its template's instruction) are the same in all of them. These prefixes are
sequences of their own after the rows, which keep the tokens after the prefix. In each layer a row attends to
its prefix's keys and values and to its own. Logits and gradients are those of whole rows.

Shape legend: B rows of the batch without their prefixes, G prefixes, R either of them, S tokens of the
longest row, P tokens of the longest prefix, M tokens of all rows, L of all prefixes, each once, N = M + L, T
tasks, D width, H heads, K key-value heads, E width of a head. `..` stands for any further dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from models.transformers_internals import attention_function, attention_implementation, register_attention

PACKED_SUFFIX = ", packed"  # ends the names under which the attention functions are registered
# up to this many tokens the written-out attention is faster, and the weights that it keeps for the backward
# pass are small
MAX_SHORT_TOKENS = 256


class PackedRows(NamedTuple):
    """The layout of a packed pass. Tokens of prefixes follow all others."""

    task_1N: torch.Tensor  # task id of each token
    position_1N: torch.Tensor  # position of each token in its whole row
    token_BS: torch.Tensor  # indices of each row's tokens; the last one repeats beyond the row's end
    slot_M: torch.Tensor  # index of each row token among the B * S
    token_GP: torch.Tensor  # indices of each prefix's tokens, counted from the first prefix
    slot_L: torch.Tensor  # index of each prefix token among the G * P
    prefix_B: torch.Tensor  # index of each row's prefix; arbitrary for rows without one
    prefix_length_B: torch.Tensor  # tokens of the row's prefix, 0 without one
    last_B: torch.Tensor  # index of each row's last token


def pack_rows(
    id_lists: Sequence[np.ndarray], task_B: np.ndarray, length_T: np.ndarray
) -> tuple[torch.Tensor, PackedRows]:
    """Lay a batch out as one sequence.

    Args:
        id_lists: Token ids of each row, with at least one token after its prefix.
        task_B: Task id of each row.
        length_T: Tokens of the prefix that all rows of a task share, 0 for none.

    Returns:
        Token ids (1, N) and their layout.
    """
    tasks, first_row = np.unique(task_B, return_index=True)
    has_prefix = length_T[tasks] > 0
    tasks, first_row = tasks[has_prefix], first_row[has_prefix]
    prefix_length_B = length_T[task_B]
    tail_B = np.array([len(ids) for ids in id_lists]) - prefix_length_B
    pieces = [ids[length:] for ids, length in zip(id_lists, prefix_length_B, strict=True)]
    pieces += [id_lists[row][: length_T[task]] for task, row in zip(tasks, first_row, strict=True)]
    within_M, token_BS, slot_M = _row_layout(tail_B)
    within_L, token_GP, slot_L = _row_layout(length_T[tasks])
    if len(tasks) == 1:
        # torch.compile specializes on dimensions of size 1; the second copy is not read
        token_GP = np.repeat(token_GP, 2, axis=0)
    task_N = np.concatenate([np.repeat(task_B, tail_B), np.repeat(tasks, length_T[tasks])])
    position_N = np.concatenate([within_M + np.repeat(prefix_length_B, tail_B), within_L])
    prefix_B = np.minimum(np.searchsorted(tasks, task_B), max(len(tasks) - 1, 0))
    rows = PackedRows(
        task_1N=torch.from_numpy(task_N[None]),
        position_1N=torch.from_numpy(position_N[None]),
        token_BS=torch.from_numpy(token_BS),
        slot_M=torch.from_numpy(slot_M),
        token_GP=torch.from_numpy(token_GP),
        slot_L=torch.from_numpy(slot_L),
        prefix_B=torch.from_numpy(prefix_B),
        prefix_length_B=torch.from_numpy(prefix_length_B),
        last_B=torch.from_numpy(np.cumsum(tail_B) - 1),
    )
    ids_1N = torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None]
    return ids_1N, rows


def _row_layout(length_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the layout of rows that lie end to end.

    Returns:
        Each token's position in its row (N,), the indices of each row's tokens (R, S), and each token's index
        among the R * S (N,).
    """
    start_R = np.cumsum(length_R) - length_R
    width = int(length_R.max(initial=0))
    row_N = np.repeat(np.arange(len(length_R)), length_R)
    within_N = np.arange(len(row_N)) - start_R[row_N]
    token_RS = start_R[:, None] + np.minimum(np.arange(width), length_R[:, None] - 1)
    return within_N, token_RS, row_N * width + within_N


def last_token_states(trunk: Any, ids_1N: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """Return a decoder's last hidden state (B, 1, D) of each row's last token.

    Call `enable_packed_attention` on the trunk first.
    """
    dtype = trunk.get_input_embeddings().weight.dtype
    mask_B1SK = torch.zeros(1, dtype=dtype, device=ids_1N.device).masked_fill(
        ~packed_attention_mask(rows), torch.finfo(dtype).min
    )
    states_1ND = trunk(
        input_ids=ids_1N,
        attention_mask=mask_B1SK,
        position_ids=rows.position_1N,
        packed_rows=rows,
        use_cache=False,
    ).last_hidden_state
    return states_1ND[0, rows.last_B].unsqueeze(1)


def packed_attention_mask(rows: PackedRows) -> torch.Tensor:
    """Return which keys each token attends to (B, 1, S, P + S): its prefix's, then its row's up to itself."""
    (num_rows, width), longest = rows.token_BS.shape, rows.token_GP.shape[1]
    device = rows.token_BS.device
    is_prefix_BP = torch.arange(longest, device=device) < rows.prefix_length_B[:, None]
    is_prefix_BSP = is_prefix_BP[:, None].expand(-1, width, -1)
    causal_SS = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return torch.cat([is_prefix_BSP, causal_SS.expand(num_rows, -1, -1)], dim=2)[:, None]


def enable_packed_attention(trunk: Any) -> None:
    """Make the trunk's attention accept `packed_rows`; padded rows give the same results as without it.

    Raises:
        ValueError: The trunk's attention is no function of queries, keys and values.
    """
    implementation, model_class = attention_implementation(trunk), type(trunk)
    if implementation.endswith(PACKED_SUFFIX):
        return
    attend = attention_function(trunk)
    if attend is None:
        raise ValueError(
            f"{model_class.__name__} has {implementation} attention, which is no function of queries, keys "
            "and values; set sdpa or eager"
        )
    name = f"{implementation}{PACKED_SUFFIX}"
    if implementation == "eager":
        name = f"{implementation} {model_class.__name__}{PACKED_SUFFIX}"  # each architecture has its own
    register_attention(name, PackedAttention(attend, is_fused=implementation == "sdpa"), implementation)
    trunk.set_attn_implementation(name)


def disable_packed_attention(trunk: Any) -> None:
    """Undo `enable_packed_attention`."""
    implementation = attention_implementation(trunk)
    if implementation.endswith(PACKED_SUFFIX):
        trunk.set_attn_implementation(implementation.removesuffix(PACKED_SUFFIX).split()[0])


class PackedAttention:
    """An attention function of transformers that also accepts packed rows.

    Fused attention is slow on short rows, so they get `short_attention` in its place.
    """

    def __init__(self, attend: Callable[..., Any], is_fused: bool) -> None:
        self.attend = attend
        self.is_fused = is_fused

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        packed_rows: PackedRows | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Attend within each row.

        Args:
            module: The attention module.
            query: (1, H, N, E).
            key: (1, K, N, E).
            value: (1, K, N, E).
            mask: (B, 1, S, P + S), added to the scores.
            packed_rows: The layout of the N tokens; without it, the shapes are those that `attend` takes.
            options: Further arguments of `attend`.

        Returns:
            (1, N, H, E), and the attention weights where `attend` gives any.
        """
        if packed_rows is None:
            return self.attend(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
        assert mask is not None, "packed rows come with a mask"
        num_row_tokens, longest = len(packed_rows.slot_M), packed_rows.token_GP.shape[1]
        states_NHE = [states[0].transpose(0, 1) for states in (query, key, value)]
        queries, keys, values = (
            UnpackTokens.apply(states[:num_row_tokens], packed_rows.token_BS, packed_rows.slot_M)
            for states in states_NHE
        )
        prefix_outputs = []
        if longest:
            prefix_states = [
                UnpackTokens.apply(states[num_row_tokens:], packed_rows.token_GP, packed_rows.slot_L)
                for states in states_NHE
            ]
            keys, values = (
                prepend_prefix(states, prefixes, packed_rows.prefix_B)
                for states, prefixes in zip((keys, values), prefix_states[1:], strict=True)
            )
            causal_11PP = torch.full(
                (longest, longest), torch.finfo(mask.dtype).min, dtype=mask.dtype, device=mask.device
            ).triu(1)[None, None]
            prefix_outputs = [
                PackTokens.apply(
                    self._attend_rows(module, prefix_states, causal_11PP, options),
                    packed_rows.token_GP,
                    packed_rows.slot_L,
                )
            ]
        row_outputs = PackTokens.apply(
            self._attend_rows(module, (queries, keys, values), mask, options),
            packed_rows.token_BS,
            packed_rows.slot_M,
        )
        return torch.cat([row_outputs, *prefix_outputs]).unsqueeze(0), None

    def _attend_rows(
        self, module: Any, states: Sequence[torch.Tensor], mask: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        """Return the attention output (R, S, H, E) of queries, keys and values (R, S, H, E)."""
        query, key, value = (state.transpose(1, 2) for state in states)
        if self.is_fused and key.shape[2] <= MAX_SHORT_TOKENS:
            return short_attention(
                query, key, value, mask, options.get("scaling"), options.get("dropout", 0.0)
            )
        return self.attend(module, query, key, value, mask, **options)[0]  # type: ignore[no-any-return]


def prepend_prefix(own_BSHE: torch.Tensor, prefix_GPHE: torch.Tensor, prefix_B: torch.Tensor) -> torch.Tensor:
    """Return each row's states after those of its prefix (B, P + S, H, E)."""
    return torch.cat([GatherPrefixes.apply(prefix_GPHE, prefix_B), own_BSHE], dim=1)


class GatherPrefixes(torch.autograd.Function):
    """Give each row its prefix's states: (G, ..) -> (B, ..).

    The gradient is summed by a matrix product, which has a fixed order on a GPU and needs no loop on a CPU.
    """

    @staticmethod
    def forward(prefixes: torch.Tensor, prefix_B: torch.Tensor) -> torch.Tensor:
        return prefixes.index_select(0, prefix_B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        prefixes, prefix_B = inputs
        ctx.num_prefixes = prefixes.shape[0]
        ctx.save_for_backward(prefix_B)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (prefix_B,) = ctx.saved_tensors
        index_G = torch.arange(ctx.num_prefixes, device=prefix_B.device)
        rows_GB = (index_G[:, None] == prefix_B).to(gradient.dtype)
        return (rows_GB @ gradient.flatten(1)).unflatten(1, gradient.shape[1:]), None


def short_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute `scaled_dot_product_attention` with matrix products.

    Query heads that share a key head are multiplied together, without copies of the keys.

    Args:
        query: (R, H, S, E).
        key: (R, K, P + S, E).
        value: (R, K, P + S, E).
        mask: Added to the scores.
        scaling: Factor of the scores, 1 / sqrt(E) by default.
        dropout: Dropout probability of the attention weights.

    Returns:
        (R, S, H, E).
    """
    num_key_heads, (length, width) = key.shape[1], query.shape[2:]
    products = query.unflatten(1, (num_key_heads, -1)).flatten(2, 3) @ key.transpose(2, 3)
    scores = products.unflatten(2, (-1, length)) * (width**-0.5 if scaling is None else scaling)
    weights = (scores + mask[:, :, None]).softmax(-1)
    states = functional.dropout(weights, dropout).flatten(2, 3) @ value
    return states.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2)


class UnpackTokens(torch.autograd.Function):
    """Lay tokens out in padded rows: (N, ..) -> (R, S, ..).

    The gradient beyond a row's end is taken to be zero, as attention gives it. So it needs no sum, whose
    order could vary.
    """

    @staticmethod
    def forward(states: torch.Tensor, token_RS: torch.Tensor, slot_N: torch.Tensor) -> torch.Tensor:
        return states.index_select(0, token_RS.flatten()).unflatten(0, token_RS.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (slot_N,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, slot_N), None, None


class PackTokens(torch.autograd.Function):
    """Lay padded rows out end to end: (R, S, ..) -> (N, ..). The gradient is zero beyond a row's end."""

    @staticmethod
    def forward(states: torch.Tensor, token_RS: torch.Tensor, slot_N: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1).index_select(0, slot_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        token_RS, slot_N = ctx.saved_tensors
        slot_RS = torch.arange(token_RS.numel(), device=token_RS.device).view_as(token_RS)
        is_real_RS = slot_N[token_RS] == slot_RS
        trailing = [1] * (gradient.dim() - 1)
        return gradient[token_RS] * is_real_RS.view(*is_real_RS.shape, *trailing), None, None
