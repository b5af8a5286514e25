"""Rows of a batch laid end to end, for training: no padding goes through the trunk, and what a task's rows begin with goes through it once.

All tokens of a pass are one long row of length N. All of a decoder but attention takes token by token, so it never meets padding; attention gets
the rows, taken out of the long one and padded for as long as it lasts. Beginnings are rows of their own behind the batch's rows, which keep what
follows: a row attends to the keys and values that the layer has just made of its beginning, and then to its own. What comes out is what the whole
rows give, with its gradient.

Shape legend: B rows of the batch, R rows with the beginnings, S tokens of the longest of these, P tokens of the longest beginning, N tokens of all
rows, T tasks, D width, H heads, E width of a head.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional


class PackedRows(NamedTuple):
    """Where the tokens of a pass belong."""

    task_1N: torch.Tensor  # of each token
    position_1N: torch.Tensor  # of each token in its whole row
    token_RS: torch.Tensor  # the tokens of each row; beyond its end its last one again
    place_N: torch.Tensor  # where each token is among the R * S
    before_RP: torch.Tensor  # the tokens of each row's beginning; beyond its end any
    num_before_R: torch.Tensor  # how many of them there are
    last_B: torch.Tensor  # the last token of each row of the batch


def pack(id_lists: Sequence[np.ndarray], task_B: np.ndarray, length_T: np.ndarray) -> tuple[torch.Tensor, PackedRows]:
    """Token ids (1, N) and where they belong, of rows whose first `length_T` tokens are the same in all of a task; each has at least one more."""
    tasks, first_row = np.unique(task_B, return_index=True)
    tasks, first_row = tasks[length_T[tasks] > 0], first_row[length_T[tasks] > 0]
    skip_B = length_T[task_B]
    beginnings = [id_lists[row][: length_T[task]] for task, row in zip(tasks, first_row, strict=True)]
    pieces = [*(ids[skip:] for ids, skip in zip(id_lists, skip_B, strict=True)), *beginnings]
    length_R = np.array([len(piece) for piece in pieces])
    start_R = np.cumsum(length_R) - length_R
    row_N = np.repeat(np.arange(len(pieces)), length_R)
    within_N = np.arange(len(row_N)) - start_R[row_N]
    num_before_R = np.concatenate([skip_B, np.zeros(len(beginnings), np.int64)])
    task_R = np.concatenate([task_B, tasks])
    start_T = np.zeros(len(length_T), np.int64)
    start_T[tasks] = start_R[len(id_lists) :]
    places = (
        task_R[row_N][None],
        (within_N + num_before_R[row_N])[None],
        start_R[:, None] + np.minimum(np.arange(length_R.max()), length_R[:, None] - 1),
        row_N * length_R.max() + within_N,
        start_T[task_R][:, None] + np.minimum(np.arange(num_before_R.max()), np.maximum(num_before_R - 1, 0)[:, None]),
        num_before_R,
        (start_R + length_R)[: len(id_lists)] - 1,
    )
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None], PackedRows(*map(torch.from_numpy, places))


def packed_states(trunk: Any, ids_1N: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """A decoder's last states (B, 1, D) of the last token of each row. `attend_row_by_row` must have been called on it."""
    dtype = trunk.get_input_embeddings().weight.dtype
    mask = torch.zeros(1, dtype=dtype, device=ids_1N.device).masked_fill(~attended(rows), torch.finfo(dtype).min)
    states_1ND = trunk(input_ids=ids_1N, attention_mask=mask, position_ids=rows.position_1N, packed_rows=rows, use_cache=False).last_hidden_state
    return states_1ND[0, rows.last_B].unsqueeze(1)


def attended(rows: PackedRows) -> torch.Tensor:
    """(R, 1, S, P + S): which of its row's beginning, and then of its row, each token attends to."""
    (num_rows, width), longest = rows.token_RS.shape, rows.before_RP.shape[1]
    device = rows.token_RS.device
    before_RP = torch.arange(longest, device=device) < rows.num_before_R[:, None]
    causal_SS = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return torch.cat([before_RP[:, None].expand(-1, width, -1), causal_SS.expand(num_rows, -1, -1)], dim=2)[:, None]


def attend_row_by_row(trunk: Any) -> None:
    """Have the trunk's attention take `packed_rows` where it is given them; all else stays. ValueError: its attention cannot be had so."""
    from transformers import AttentionInterface, AttentionMaskInterface

    kind = trunk.config._attn_implementation
    if kind.endswith(ROW_BY_ROW):
        return
    module = type(trunk).__module__
    attend = AttentionInterface().get(kind) if kind == "sdpa" else getattr(sys.modules[module], "eager_attention_forward", None)
    if attend is None or kind not in ("sdpa", "eager"):
        raise ValueError(f"{type(trunk).__name__} has {kind} attention, which does not come as a function of queries, keys and values")
    name = f"{module}.{kind}{ROW_BY_ROW}"
    AttentionInterface.register(name, RowByRow(attend))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[kind])
    trunk.set_attn_implementation(name)


class RowByRow:
    """One of transformers' attention functions, for rows that lie end to end too."""

    def __init__(self, attend: Callable[..., Any]) -> None:
        self.attend = attend

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any, packed_rows: PackedRows | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        """Queries, keys and values (1, H, N, E), or as the function has them -> (1, N, H, E), and its weights where it gives any."""
        if packed_rows is None:
            return self.attend(module, query, key, value, *others, **options)  # type: ignore[no-any-return]
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        queries = ToRows.apply(query, packed_rows.token_RS, packed_rows.place_N)
        keys, values = (behind_beginning(states, packed_rows) for states in (key, value))
        out_RSHE, _ = self.attend(module, *(states.transpose(1, 2) for states in (queries, keys, values)), *others, **options)
        return FromRows.apply(out_RSHE, packed_rows.token_RS, packed_rows.place_N).unsqueeze(0), None


def behind_beginning(states_NHE: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """Each row's states behind those of its beginning (R, P + S, H, E)."""
    own = ToRows.apply(states_NHE, rows.token_RS, rows.place_N)
    if not rows.before_RP.shape[1]:
        return own  # type: ignore[no-any-return]
    # an embedding's backward is a dense sum in fixed order; that of plain indexing adds in any order on a GPU
    before = functional.embedding(rows.before_RP, states_NHE.flatten(1)).unflatten(-1, states_NHE.shape[1:])
    return torch.cat([before, own], dim=1)


class ToRows(torch.autograd.Function):
    """(N, ..) -> (R, S, ..). What comes back for places beyond a row's end is taken for zero, as attention gives it: so the gradient needs no sum,
    whose order could vary."""

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
