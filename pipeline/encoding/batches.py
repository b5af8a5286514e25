"""Encoded rows in memory and the tensors made of them, padded or packed.

Shape legend: N rows in memory, B rows of a batch, S tokens, P tokens of all rows laid end to end, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.packing import PackedRows, pack
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import Encoder

LIKE_LENGTH = 0.9  # of the longest row of a batch


@dataclass(frozen=True)
class EncodedRows:
    """Rows of one or more tasks, tokenised. Token ids lie end to end: row n is ids[starts[n] : starts[n +
    1]].
    """

    ids: np.ndarray  # int32
    starts: np.ndarray  # int64 (N + 1,)
    task_N: np.ndarray  # int64, index into the run's tasks
    label_N: np.ndarray  # int64, -1 where the row is not judged
    weight_N: np.ndarray  # float32
    # Arrow: a numpy string array would give every row the room of the longest, objects 60 bytes each beside
    # their letters
    row_id_N: pa.ChunkedArray
    query_N: pa.ChunkedArray  # for intervals clustered by query

    def __len__(self) -> int:
        return len(self.task_N)

    @property
    def length_N(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.starts)

    def ids_of(self, row: int | np.integer[Any]) -> np.ndarray:
        """Token ids of a row number."""
        return self.ids[self.starts[row] : self.starts[row + 1]]

    def row_ids_of(self, rows: np.ndarray) -> list[str]:
        """The row_id of each row number."""
        return [str(row_id) for row_id in self.row_id_N.take(pa.array(rows)).to_pylist()]

    def queries_of(self, rows: np.ndarray) -> np.ndarray:
        """The query of each row number, as objects."""
        return np.asarray(self.query_N.take(pa.array(rows)).to_pylist(), dtype=object)


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch: padded on the right, or packed, with ids (1, P) of all rows and a mask (B,
    1) of their last tokens.
    """

    input_ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    task_B: torch.Tensor
    label_B: torch.Tensor
    weight_B: torch.Tensor
    packed: PackedRows | None
    num_padding: int

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PackedRows | None]:
        """What the model takes of it."""
        return self.input_ids_BS, self.mask_BS, self.task_B, self.packed

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        tensors = (self.input_ids_BS, self.mask_BS, self.task_B, self.label_B, self.weight_B)
        ids, mask, task, label, weight = (to_device(tensor, device) for tensor in tensors)
        packed = self.packed and PackedRows(*(to_device(tensor, device) for tensor in self.packed))
        return Batch(ids, mask, task, label, weight, packed, self.num_padding)


def encode_rows(tables: dict[str, pa.Table], tasks: Sequence[Task], encoder: Encoder) -> EncodedRows:
    """Tokenise the contract rows of each task, in the order of `tasks`."""
    present = [(index, task) for index, task in enumerate(tasks) if task.name in tables]
    id_lists = [ids for _, task in present for ids in encoder.encode(tables[task.name], task.name)]
    whole = pa.concat_tables([tables[task.name] for _, task in present])
    lengths = np.fromiter((len(ids) for ids in id_lists), np.int64, len(id_lists))
    return EncodedRows(
        ids=np.concatenate([np.asarray(ids, np.int32) for ids in id_lists])
        if id_lists
        else np.zeros(0, np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        task_N=np.repeat(
            [index for index, _ in present], [tables[task.name].num_rows for _, task in present]
        ).astype(np.int64),
        label_N=whole.column("label").fill_null(-1).to_numpy().astype(np.int64),
        weight_N=whole.column("weight").fill_null(1.0).to_numpy().astype(np.float32),
        row_id_N=whole.column("row_id"),
        query_N=whole.column("query"),
    )


def collate(
    encoded: EncodedRows, rows: np.ndarray, num_tasks: int, pad_id: int, beginning_T: np.ndarray | None = None
) -> Batch:
    """The batch of some row numbers. Task ids are checked here, on the host, once: the model's layers do not.
    Padded, or, with `beginning_T`, the tokens that each task's rows begin with alike, packed.
    """
    task_B = encoded.task_N[rows]
    if len(task_B) and not 0 <= task_B.min() <= task_B.max() < num_tasks:
        raise ValueError(f"task ids {sorted(set(task_B.tolist()))} do not all lie in 0..{num_tasks - 1}")
    id_lists = [encoded.ids_of(row) for row in rows]
    task, label, weight = (
        torch.from_numpy(values) for values in (task_B, encoded.label_N[rows], encoded.weight_N[rows])
    )
    if beginning_T is not None:
        ids_1P, packed = pack(id_lists, task_B, beginning_T)
        return Batch(ids_1P, torch.ones(len(rows), 1, dtype=torch.long), task, label, weight, packed, 0)
    input_ids_BS, mask_BS = pad_rows(id_lists, pad_id)
    return Batch(
        input_ids_BS, mask_BS, task, label, weight, None, input_ids_BS.numel() - sum(map(len, id_lists))
    )


def pad_rows(id_lists: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids padded on the right, their mask), both int64 (B, S)."""
    lengths = np.array([len(ids) for ids in id_lists])
    ids_BS = np.full((len(id_lists), int(lengths.max())), pad_id, np.int64)
    for row, ids in enumerate(id_lists):
        ids_BS[row, : len(ids)] = ids
    mask_BS = np.arange(ids_BS.shape[1])[None] < lengths[:, None]
    return torch.from_numpy(ids_BS), torch.from_numpy(mask_BS.astype(np.int64))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on a device. To a GPU it goes from pinned memory, so that nobody waits for what the GPU
    was given before.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def length_batches(length_N: np.ndarray, token_budget: int, full_enough: float = 1.0) -> list[np.ndarray]:
    """Row numbers in batches of like lengths, longest first, each at most `token_budget` tokens with its
    padding (or one row). A batch of a `full_enough` part of that ends where rows get so much shorter that
    they are better off in one of their own.
    """
    order = np.argsort(-length_N, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(length_N[order[start]]))
        stop = min(len(order), start + max(1, token_budget // longest))
        enough = start + max(1, int(token_budget * full_enough) // longest)
        like = int(np.searchsorted(-length_N[order[start:stop]], -LIKE_LENGTH * longest, side="right"))
        stop = min(stop, max(enough, start + like))
        batches.append(order[start:stop])
        start = stop
    return batches
