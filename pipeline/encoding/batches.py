"""Encoded rows in memory, and the padded or packed tensors of a batch.

pipeline/training/sampler.py chooses the rows of a training batch, `length_batches` those of every other one.

Shape legend: N rows in memory, B rows of a batch, S tokens, P tokens of all rows concatenated, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.packing import PackedRows, pack_rows
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import Encoder

MIN_LENGTH_RATIO = 0.9  # of a row to the longest row of its batch


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows of one or more tasks.

    The token ids of all rows are concatenated: row n is ids[starts[n] : starts[n + 1]].
    """

    ids: np.ndarray  # int32
    starts: np.ndarray  # int64 (N + 1,)
    task_N: np.ndarray  # int64, index into the run's tasks
    label_N: np.ndarray  # int64, -1 for a row without a label
    weight_N: np.ndarray  # float32
    # Arrow, because numpy pads strings to the longest one and objects cost 60 bytes each
    row_id_N: pa.ChunkedArray
    query_N: pa.ChunkedArray  # for confidence intervals clustered by query

    def __len__(self) -> int:
        return len(self.task_N)

    @property
    def length_N(self) -> np.ndarray:
        """Number of tokens of each row."""
        return np.diff(self.starts)

    def ids_of(self, row: int | np.integer[Any]) -> np.ndarray:
        """Return the token ids of a row, by its number."""
        return self.ids[self.starts[row] : self.starts[row + 1]]

    def row_ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the row_id of each row number."""
        return [str(row_id) for row_id in self.row_id_N.take(pa.array(rows)).to_pylist()]

    def queries_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the query of each row number, as an object array."""
        return np.asarray(self.query_N.take(pa.array(rows)).to_pylist(), dtype=object)


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch.

    Padded: `input_ids_BS` and `mask_BS` are (B, S), padded on the right. Packed: `input_ids_BS` is (1, P)
    with the ids of all rows, and `mask_BS` is (B, 1) with ones.
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
        """Inputs of the model."""
        return self.input_ids_BS, self.mask_BS, self.task_B, self.packed

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        tensors = (self.input_ids_BS, self.mask_BS, self.task_B, self.label_B, self.weight_B)
        ids, mask, task, label, weight = (to_device(tensor, device) for tensor in tensors)
        packed = self.packed and PackedRows(*(to_device(tensor, device) for tensor in self.packed))
        return Batch(ids, mask, task, label, weight, packed, self.num_padding)


def encode_rows(tables: dict[str, pa.Table], tasks: Sequence[Task], encoder: Encoder) -> EncodedRows:
    """Encode the contract rows of each task, in the order of `tasks`."""
    present = [(index, task) for index, task in enumerate(tasks) if task.name in tables]
    id_lists = [ids for _, task in present for ids in encoder.encode(tables[task.name], task.name)]
    all_rows = pa.concat_tables([tables[task.name] for _, task in present])
    lengths = np.fromiter((len(ids) for ids in id_lists), np.int64, len(id_lists))
    indices = [index for index, _ in present]
    sizes = [tables[task.name].num_rows for _, task in present]
    return EncodedRows(
        ids=np.concatenate([np.zeros(0, np.int32), *(np.asarray(ids, np.int32) for ids in id_lists)]),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        task_N=np.repeat(indices, sizes).astype(np.int64),
        label_N=all_rows.column("label").fill_null(-1).to_numpy().astype(np.int64),
        weight_N=all_rows.column("weight").fill_null(1.0).to_numpy().astype(np.float32),
        row_id_N=all_rows.column("row_id"),
        query_N=all_rows.column("query"),
    )


def collate(
    encoded: EncodedRows,
    rows: np.ndarray,
    num_tasks: int,
    pad_id: int,
    prefix_length_T: np.ndarray | None = None,
) -> Batch:
    """Return the batch of some rows.

    Args:
        encoded: All rows.
        rows: Row numbers (B,) of the batch.
        num_tasks: Number of tasks of the model.
        pad_id: Token id of the padding.
        prefix_length_T: Number of tokens that all rows of a task start with. If given, the batch is packed.

    Raises:
        ValueError: A task id is out of range. The model's layers do not check it.
    """
    task_B = encoded.task_N[rows]
    if len(task_B) and not 0 <= task_B.min() <= task_B.max() < num_tasks:
        raise ValueError(f"task ids {sorted(set(task_B.tolist()))} do not all lie in 0..{num_tasks - 1}")
    id_lists = [encoded.ids_of(row) for row in rows]
    task, label, weight = (
        torch.from_numpy(values) for values in (task_B, encoded.label_N[rows], encoded.weight_N[rows])
    )
    if prefix_length_T is not None:
        ids_1P, packed = pack_rows(id_lists, task_B, prefix_length_T)
        mask_B1 = torch.ones(len(rows), 1, dtype=torch.long)
        return Batch(ids_1P, mask_B1, task, label, weight, packed, num_padding=0)
    input_ids_BS, mask_BS = pad_rows(id_lists, pad_id)
    num_padding = input_ids_BS.numel() - sum(map(len, id_lists))
    return Batch(input_ids_BS, mask_BS, task, label, weight, None, num_padding)


def pad_rows(id_lists: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids padded on the right and their mask, both int64 (B, S)."""
    lengths = np.array([len(ids) for ids in id_lists])
    ids_BS = np.full((len(id_lists), int(lengths.max())), pad_id, np.int64)
    for row, ids in enumerate(id_lists):
        ids_BS[row, : len(ids)] = ids
    mask_BS = np.arange(ids_BS.shape[1])[None] < lengths[:, None]
    return torch.from_numpy(ids_BS), torch.from_numpy(mask_BS.astype(np.int64))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to a device; to a GPU from pinned memory, so that the copy does not block."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def length_batches(length_N: np.ndarray, token_budget: int, min_fill: float = 1.0) -> list[np.ndarray]:
    """Split rows into batches of similar length, longest rows first.

    Args:
        length_N: Number of tokens of each row.
        token_budget: Most tokens of a batch, padding included; a longer row is a batch of its own.
        min_fill: Share of the budget from which a batch may end early, before a row shorter than
            MIN_LENGTH_RATIO of its longest row.

    Returns:
        Row numbers of each batch.
    """
    order = np.argsort(-length_N, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(length_N[order[start]]))
        budget_stop = min(len(order), start + max(1, token_budget // longest))
        fill_stop = start + max(1, int(token_budget * min_fill) // longest)
        candidate_lengths = length_N[order[start:budget_stop]]  # falling
        num_similar = int(np.searchsorted(-candidate_lengths, -MIN_LENGTH_RATIO * longest, side="right"))
        stop = min(budget_stop, max(fill_stop, start + num_similar))
        batches.append(order[start:stop])
        start = stop
    return batches
