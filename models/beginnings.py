"""Rows of a batch that begin alike, for training: what they begin with goes through the model once, in the same pass and with its gradient.

The beginnings lie end to end in rows of their own behind the batch's rows, which keep what follows. In each layer a row attends to the keys and
values that the layer has just made of its beginning, and then to its own: what comes out is what the whole rows give, for fewer tokens.

Shape legend: B rows of the batch, R rows with those of the beginnings, S tokens, P tokens of the longest beginning, T tasks, D width, H key-value
heads, E width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional


class Beginnings(NamedTuple):
    """Where the tokens of a batch belong. A task's rows have one beginning."""

    task_RS: torch.Tensor  # of each token; a row of beginnings may have those of several tasks
    position_RS: torch.Tensor  # of each token in its whole row; padding has one that is there
    place_RP: torch.Tensor  # where the beginning of the row's first token lies, among the R * S tokens
    before_R: torch.Tensor  # how many of its tokens lie in other rows, before this one


@dataclass(frozen=True)
class LaidOut:
    """Rows without their beginnings, and the beginnings behind them."""

    ids_RS: np.ndarray  # padded on the right
    mask_BS: np.ndarray  # 1 real, 0 padding
    beginnings: Beginnings
    num_padding: int


def tokens_laid_out(length_B: np.ndarray, task_B: np.ndarray, length_T: np.ndarray) -> int:
    """Tokens, padding included, that `lay_out` makes of rows of these lengths."""
    width = int((length_B - length_T[task_B]).max())
    return (len(length_B) + rows_of_beginnings(task_B, length_T, width)) * width


def rows_of_beginnings(task_B: np.ndarray, length_T: np.ndarray, width: int) -> int:
    """Rows that the beginnings of a batch take."""
    return -(-int(length_T[np.unique(task_B)].sum()) // width)


def lay_out(id_lists: Sequence[np.ndarray], task_B: np.ndarray, length_T: np.ndarray, pad_id: int) -> LaidOut:
    """Rows of token ids, the first `length_T` of which are the same in all rows of a task, with at least one more."""
    skip_B = length_T[task_B]
    length_B = np.array([len(ids) for ids in id_lists])
    tail_B = length_B - skip_B
    num_rows, width = len(id_lists), int(tail_B.max())
    tasks, first_row = np.unique(task_B, return_index=True)
    beginning = np.concatenate([id_lists[row][: length_T[task]] for task, row in zip(tasks, first_row, strict=True)])
    own_rows = rows_of_beginnings(task_B, length_T, width)
    start_T = np.zeros(len(length_T), np.int64)  # where each beginning starts among the tokens of all
    start_T[tasks] = (np.cumsum(length_T[tasks]) - length_T[tasks]) * (length_T[tasks] > 0)
    longest = int(length_T[tasks].max())

    ids_RS = np.full((num_rows + own_rows, width), pad_id, np.int64)
    for row, ids in enumerate(id_lists):
        ids_RS[row, : tail_B[row]] = ids[skip_B[row] :]
    task_RS = np.zeros_like(ids_RS)
    task_RS[:num_rows] = task_B[:, None]
    position_RS = np.zeros_like(ids_RS)
    position_RS[:num_rows] = np.minimum(skip_B[:, None] + np.arange(width), length_B[:, None] - 1)
    for of_all, of_beginnings in (
        (ids_RS, beginning),
        (task_RS, np.repeat(tasks, length_T[tasks])),
        (position_RS, np.concatenate([np.arange(length_T[task]) for task in tasks])),
    ):
        of_all[num_rows:].reshape(-1)[: len(beginning)] = of_beginnings
    task_R = task_RS[:, 0]
    within_RP = np.minimum(np.arange(longest), np.maximum(length_T[task_R] - 1, 0)[:, None])
    places = Beginnings(
        *map(torch.from_numpy, (task_RS, position_RS, num_rows * width + start_T[task_R][:, None] + within_RP, position_RS[:, 0].copy()))
    )  # fmt: skip
    mask_BS = (np.arange(width) < tail_B[:, None]).astype(np.int64)
    return LaidOut(ids_RS, mask_BS, places, ids_RS.size - int(tail_B.sum()) - len(beginning))


def states_behind(trunk: Any, ids_RS: torch.Tensor, beginnings: Beginnings, num_rows: int) -> torch.Tensor:
    """A decoder's last states (B, S, D) of the rows of a batch that is laid out like this."""
    dtype = trunk.get_input_embeddings().weight.dtype
    mask = torch.zeros(1, dtype=dtype, device=ids_RS.device).masked_fill(~attended(beginnings), torch.finfo(dtype).min)
    cache = LayerBeginnings(beginnings.place_RP)
    states_RSD = trunk(
        input_ids=ids_RS, attention_mask=mask, position_ids=beginnings.position_RS, past_key_values=cache, use_cache=False
    ).last_hidden_state  # fmt: skip
    return states_RSD[:num_rows]


def attended(beginnings: Beginnings) -> torch.Tensor:
    """(R, 1, S, P + S): which of its beginning's tokens, and then of its own row's, each token attends to."""
    task_RS, width = beginnings.task_RS, beginnings.task_RS.shape[1]
    before_RP = torch.arange(beginnings.place_RP.shape[1], device=task_RS.device) < beginnings.before_R[:, None]
    first_task_RS = task_RS == task_RS[:, :1]
    causal_SS = torch.ones(width, width, dtype=torch.bool, device=task_RS.device).tril()
    own_RSS = (task_RS[:, :, None] == task_RS[:, None]) & causal_SS
    return torch.cat([before_RP[:, None] & first_task_RS[:, :, None], own_RSS], dim=2)[:, None]


class LayerBeginnings:
    """Stands where transformers has a cache: gives a layer its keys and values with those of each row's beginning before them. It keeps nothing."""

    def __init__(self, place_RP: torch.Tensor) -> None:
        self.place_RP = place_RP

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, H, S, E) -> (R, H, P + S, E), both."""
        return self._behind_beginning(keys), self._behind_beginning(values)

    def get_seq_length(self, *_: Any) -> int:
        """Tokens that earlier passes left: some architectures ask."""
        return 0

    def _behind_beginning(self, states: torch.Tensor) -> torch.Tensor:
        num_heads, width = states.shape[1], states.shape[3]
        # an embedding's backward is a dense sum in fixed order; that of plain indexing adds in any order on a GPU
        chosen = functional.embedding(self.place_RP, states.transpose(1, 2).reshape(-1, num_heads * width))
        return torch.cat([chosen.unflatten(-1, (num_heads, width)).transpose(1, 2), states], dim=2)
