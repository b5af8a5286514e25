"""Rows of a batch laid end to end, for training: no padding goes through the trunk, and what a task's rows
begin with goes through it once.

All tokens of a pass are one long row of length N. All of a decoder but attention takes token by token, so it
never meets padding; attention gets the rows, taken out of the long one and padded for as long as it lasts.
Beginnings are rows of their own behind the batch's rows, which keep what follows: a row attends to the keys
and values that the layer has just made of its beginning, and then to its own. What comes out is what the
whole rows give, with its gradient.

Shape legend: B rows of the batch without their beginnings, G beginnings, R either of them, S tokens of the
longest row, P tokens of the longest beginning, M tokens of all rows, L of all beginnings, each once, N = M +
L, T tasks, D width, H heads, K of them for keys, E width of a head.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional


class PackedRows(NamedTuple):
    """Where the tokens of a pass belong. Those of beginnings lie behind all others."""

    task_1N: torch.Tensor  # of each token
    position_1N: torch.Tensor  # of each token in its whole row
    token_BS: torch.Tensor  # the tokens of each row without its beginning; beyond its end its last one again
    place_M: torch.Tensor  # where each of them is among the B * S
    token_GP: torch.Tensor  # those of each beginning, counted from where beginnings start
    place_L: torch.Tensor
    beginning_B: torch.Tensor  # each row's; any where it has none
    num_before_B: torch.Tensor  # tokens of the row's beginning, 0 where it has none
    last_B: torch.Tensor  # the last token of each row


def pack(
    id_lists: Sequence[np.ndarray], task_B: np.ndarray, length_T: np.ndarray
) -> tuple[torch.Tensor, PackedRows]:
    """Token ids (1, N) and where they belong, of rows whose first `length_T` tokens are the same in all of a
    task; each has at least one more.
    """
    tasks, first_row = np.unique(task_B, return_index=True)
    tasks, first_row = tasks[length_T[tasks] > 0], first_row[length_T[tasks] > 0]
    skip_B = length_T[task_B]
    tail_B = np.array([len(ids) for ids in id_lists]) - skip_B
    pieces = [ids[skip:] for ids, skip in zip(id_lists, skip_B, strict=True)]
    pieces += [id_lists[row][: length_T[task]] for task, row in zip(tasks, first_row, strict=True)]
    within_M, token_BS, place_M = laid_in_rows(tail_B)
    within_L, token_GP, place_L = laid_in_rows(length_T[tasks])
    if len(tasks) == 1:
        # torch.compile has code of its own for one of anything; nobody looks at the second
        token_GP = np.repeat(token_GP, 2, axis=0)
    places = (
        np.concatenate([np.repeat(task_B, tail_B), np.repeat(tasks, length_T[tasks])])[None],
        np.concatenate([within_M + np.repeat(skip_B, tail_B), within_L])[None],
        token_BS,
        place_M,
        token_GP,
        place_L,
        np.minimum(np.searchsorted(tasks, task_B), max(len(tasks) - 1, 0)),
        skip_B,
        np.cumsum(tail_B) - 1,
    )
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None], PackedRows(
        *map(torch.from_numpy, places)
    )


def laid_in_rows(length_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows that lie end to end: where each token is in its row, the tokens of each row (R, S), and where
    each token is among these.
    """
    start_R = np.cumsum(length_R) - length_R
    width = int(length_R.max(initial=0))
    row_N = np.repeat(np.arange(len(length_R)), length_R)
    within_N = np.arange(len(row_N)) - start_R[row_N]
    token_RS = start_R[:, None] + np.minimum(np.arange(width), length_R[:, None] - 1)
    return within_N, token_RS, row_N * width + within_N


def last_token_states(trunk: Any, ids_1N: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """A decoder's last states (B, 1, D) of the last token of each row. `attend_row_by_row` must have been
    called on it.
    """
    dtype = trunk.get_input_embeddings().weight.dtype
    mask = torch.zeros(1, dtype=dtype, device=ids_1N.device).masked_fill(
        ~attended(rows), torch.finfo(dtype).min
    )
    states_1ND = trunk(
        input_ids=ids_1N,
        attention_mask=mask,
        position_ids=rows.position_1N,
        packed_rows=rows,
        use_cache=False,
    ).last_hidden_state
    return states_1ND[0, rows.last_B].unsqueeze(1)


def attended(rows: PackedRows) -> torch.Tensor:
    """(B, 1, S, P + S): which of its row's beginning, and then of its row, each token attends to."""
    (num_rows, width), longest = rows.token_BS.shape, rows.token_GP.shape[1]
    device = rows.token_BS.device
    before_BP = torch.arange(longest, device=device) < rows.num_before_B[:, None]
    causal_SS = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return torch.cat([before_BP[:, None].expand(-1, width, -1), causal_SS.expand(num_rows, -1, -1)], dim=2)[
        :, None
    ]


def attend_row_by_row(trunk: Any) -> None:
    """Have the trunk's attention take `packed_rows` where it is given them; all else stays. ValueError: its
    attention cannot be had so.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    kind, model = trunk.config._attn_implementation, type(trunk)
    if kind.endswith(ROW_BY_ROW):
        return
    name = f"{kind}{ROW_BY_ROW}"
    if kind == "sdpa":
        attend = AttentionInterface()[kind]
    elif kind == "eager" and hasattr(sys.modules[model.__module__], "eager_attention_forward"):
        name = f"{kind} {model.__name__}{ROW_BY_ROW}"  # each architecture has its own
        attend = sys.modules[model.__module__].eager_attention_forward
    else:
        raise ValueError(
            f"{model.__name__} has {kind} attention, which does not come as a function of queries, keys "
            "and values"
        )
    AttentionInterface.register(name, RowByRow(attend, fused=kind == "sdpa"))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[kind])
    trunk.set_attn_implementation(name)


def attend_as_before(trunk: Any) -> None:
    """Undo `attend_row_by_row`."""
    kind = trunk.config._attn_implementation
    if kind.endswith(ROW_BY_ROW):
        trunk.set_attn_implementation(kind.removesuffix(ROW_BY_ROW).split()[0])


class RowByRow:
    """One of transformers' attention functions, for rows that lie end to end too. The fused one is written
    out for short rows: it is slow at them.
    """

    def __init__(self, attend: Callable[..., Any], fused: bool) -> None:
        self.attend = attend
        self.fused = fused

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
        """Queries, keys and values (1, H, N, E), or as the function has them -> (1, N, H, E), and its weights
        where it gives any.
        """
        if packed_rows is None:
            return self.attend(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
        assert mask is not None, "packed rows come with a mask"
        num_own, longest = len(packed_rows.place_M), packed_rows.token_GP.shape[1]
        states_NHE = [states[0].transpose(0, 1) for states in (query, key, value)]
        queries, keys, values = (
            ToRows.apply(states[:num_own], packed_rows.token_BS, packed_rows.place_M) for states in states_NHE
        )
        beginnings = []
        if longest:
            begun = [
                ToRows.apply(states[num_own:], packed_rows.token_GP, packed_rows.place_L)
                for states in states_NHE
            ]
            keys, values = (
                behind_beginning(own, of, packed_rows.beginning_B)
                for own, of in zip((keys, values), begun[1:], strict=True)
            )
            causal = torch.full(
                (longest, longest), torch.finfo(mask.dtype).min, dtype=mask.dtype, device=mask.device
            ).triu(1)[None, None]
            beginnings = [
                FromRows.apply(
                    self._attended(module, begun, causal, options), packed_rows.token_GP, packed_rows.place_L
                )
            ]
        own = FromRows.apply(
            self._attended(module, (queries, keys, values), mask, options),
            packed_rows.token_BS,
            packed_rows.place_M,
        )
        return torch.cat([own, *beginnings]).unsqueeze(0), None

    def _attended(
        self, module: Any, states: Sequence[torch.Tensor], mask: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        """Queries, keys and values (R, S, H, E) -> (R, S, H, E)."""
        query, key, value = (one.transpose(1, 2) for one in states)
        if self.fused and key.shape[2] <= SHORT:
            return attend_in_products(
                query, key, value, mask, options.get("scaling"), options.get("dropout", 0.0)
            )
        return self.attend(module, query, key, value, mask, **options)[0]  # type: ignore[no-any-return]


def behind_beginning(
    own_BSHE: torch.Tensor, begun_GPHE: torch.Tensor, beginning_B: torch.Tensor
) -> torch.Tensor:
    """Each row's states behind those of its beginning (B, P + S, H, E)."""
    return torch.cat([OfBeginnings.apply(begun_GPHE, beginning_B), own_BSHE], dim=1)


class OfBeginnings(torch.autograd.Function):
    """(G, ..) -> (B, ..): what each row begins with. The gradient is summed by a product: in fixed order on a
    GPU, and in no loop on a CPU.
    """

    @staticmethod
    def forward(begun: torch.Tensor, beginning_B: torch.Tensor) -> torch.Tensor:
        return begun.index_select(0, beginning_B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        begun, beginning_B = inputs
        ctx.num_beginnings = begun.shape[0]
        ctx.save_for_backward(beginning_B)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (beginning_B,) = ctx.saved_tensors
        beginning_G = torch.arange(ctx.num_beginnings, device=beginning_B.device)
        rows_GB = (beginning_G[:, None] == beginning_B).to(gradient.dtype)
        return (rows_GB @ gradient.flatten(1)).unflatten(1, gradient.shape[1:]), None


def attend_in_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """What torch's fused attention gives, of queries (R, H, S, E), keys and values (R, K, P + S, E) and a
    mask to add, as (R, S, H, E): the queries that share a key in one product, without a copy of it for each.
    """
    of_a_key, (length, width) = (key.shape[1], -1), query.shape[2:]
    scores = (query.unflatten(1, of_a_key).flatten(2, 3) @ key.transpose(2, 3)).unflatten(2, (-1, length))
    weights = (scores * (width**-0.5 if scaling is None else scaling) + mask[:, :, None]).softmax(-1)
    states = functional.dropout(weights, dropout).flatten(2, 3) @ value
    return states.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2)


class ToRows(torch.autograd.Function):
    """(N, ..) -> (R, S, ..). What comes back for places beyond a row's end is taken for zero, as attention
    gives it: so the gradient needs no sum, whose order could vary.
    """

    @staticmethod
    def forward(states: torch.Tensor, token_RS: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
        return states.index_select(0, token_RS.flatten()).unflatten(0, token_RS.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (place_N,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, place_N), None, None


class FromRows(torch.autograd.Function):
    """(R, S, ..) -> (N, ..); the gradient is zero beyond a row's end."""

    @staticmethod
    def forward(states: torch.Tensor, token_RS: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1).index_select(0, place_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        token_RS, place_N = ctx.saved_tensors
        places = torch.arange(token_RS.numel(), device=token_RS.device).view_as(token_RS)
        real_RS = place_N[token_RS] == places
        return gradient[token_RS] * real_RS.view(*real_RS.shape, *[1] * (gradient.dim() - 1)), None, None


ROW_BY_ROW = ", row by row"
# tokens, beyond which weights of attention that are written out would be a good part of what is kept for the
# backward pass
SHORT = 256
