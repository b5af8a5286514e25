"""Encoded rows, in memory or mapped from files, and the padded or packed tensors of a batch.

pipeline/training/sampler.py chooses the rows of a training batch, `length_batches` those of every other one.

Shape legend: N rows, C chunks of rows, B rows of a batch, S tokens, P tokens of all rows concatenated, T
tasks.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.packing import PackedRows, pack_rows
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import Encoder
from pipeline.errors import RetryableError
from pipeline.storage.filesystem import file_stamp

ENCODED_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("query", pa.string(), False),
        pa.field("ids", pa.list_(pa.int32()), False),
        pa.field("label", pa.int32(), False),
        pa.field("weight", pa.float32(), False),
    ]
)

MIN_LENGTH_RATIO = 0.9  # of a row to the longest row of its batch


@dataclass(frozen=True)
class RowChunk:
    """Encoded rows of one task; its arrays are views of Arrow buffers, which may be parts of a mapped file.

    Row n of the chunk has the token ids ids[starts[n] : starts[n + 1]].
    """

    task: int  # index into the run's tasks
    ids: np.ndarray  # int32
    starts: np.ndarray  # int32 (rows of the chunk + 1,)
    label: np.ndarray  # int32, -1 for a row without a label
    weight: np.ndarray  # float32
    row_id: pa.StringArray
    query: pa.StringArray  # for confidence intervals clustered by query

    @classmethod
    def from_batch(cls, task: int, batch: pa.RecordBatch) -> "RowChunk":
        """Return the view of a batch of ENCODED_SCHEMA."""
        ids = batch.column("ids")
        return cls(
            task=task,
            ids=ids.values.to_numpy(),
            starts=ids.offsets.to_numpy(),
            label=batch.column("label").to_numpy(),
            weight=batch.column("weight").to_numpy(),
            row_id=batch.column("row_id"),
            query=batch.column("query"),
        )

    def __len__(self) -> int:
        return len(self.label)


class EncodedRows:
    """Encoded rows of one or more tasks, numbered over all chunks.

    Only the lengths and tasks of rows are arrays of their own; all else stays where the chunks view it.
    """

    def __init__(
        self, chunks: Iterable[RowChunk], stamps: Mapping[Path, tuple[int, ...]] | None = None
    ) -> None:
        """Number the rows.

        Args:
            chunks: Rows in their order.
            stamps: `file_stamp` of each file that the chunks view.
        """
        self.chunks = [chunk for chunk in chunks if len(chunk)]
        self._stamps = dict(stamps or {})
        sizes = [len(chunk) for chunk in self.chunks]
        self._first_rows = [0, *itertools.accumulate(sizes)]  # of each chunk, and the end
        self._first_row_C = np.array(self._first_rows)
        # number of tokens of each row
        self.length_N = np.empty(len(self), np.int32)
        for first, chunk in zip(self._first_rows, self.chunks, strict=False):
            np.subtract(chunk.starts[1:], chunk.starts[:-1], out=self.length_N[first : first + len(chunk)])
        # index into the run's tasks; small, as trainings hold one of each row
        self.task_N = np.repeat(np.array([chunk.task for chunk in self.chunks], np.int16), sizes)

    def __len__(self) -> int:
        return self._first_rows[-1]

    @property
    def row_id_N(self) -> pa.ChunkedArray:
        """Row_id of each row."""
        return pa.chunked_array([chunk.row_id for chunk in self.chunks], pa.string())

    @property
    def query_N(self) -> pa.ChunkedArray:
        """Query of each row."""
        return pa.chunked_array([chunk.query for chunk in self.chunks], pa.string())

    def ids_of(self, row: int | np.integer[Any]) -> np.ndarray:
        """Return the token ids of a row, by its number."""
        number = bisect_right(self._first_rows, int(row)) - 1
        chunk, position = self.chunks[number], int(row) - self._first_rows[number]
        return chunk.ids[chunk.starts[position] : chunk.starts[position + 1]]

    def task_chunks(self, task: int) -> list[tuple[int, RowChunk]]:
        """Return each chunk of a task and the number of its first row."""
        numbered = zip(self._first_rows, self.chunks, strict=False)
        return [(first, chunk) for first, chunk in numbered if chunk.task == task]

    def tasks_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the task index of each row number, int64."""
        return self.task_N[rows].astype(np.int64)

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the label of each row number, int64; -1 for a row without one."""
        return np.array([chunk.label[n] for chunk, n in self._places(rows)], np.int64)

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the weight of each row number, float32."""
        return np.array([chunk.weight[n] for chunk, n in self._places(rows)], np.float32)

    def row_ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the row_id of each row number."""
        return [chunk.row_id[n].as_py() for chunk, n in self._places(rows)]

    def queries_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the query of each row number, as an object array."""
        return np.array([chunk.query[n].as_py() for chunk, n in self._places(rows)], object)

    def check_files(self) -> None:
        """Raise RetryableError if a file that the rows are mapped from changed or was removed."""
        for path, stamp in self._stamps.items():
            try:
                is_unchanged = file_stamp(path) == stamp
            except OSError:
                is_unchanged = False
            if not is_unchanged:
                raise RetryableError(
                    f"encoded rows changed or removed while they are read: {path}; run the same command again"
                )

    def _places(self, rows: np.ndarray) -> Iterator[tuple[RowChunk, int]]:
        """Yield the chunk of each row number, and the row's position in it."""
        chunk_B = np.searchsorted(self._first_row_C, rows, side="right") - 1
        position_B = rows - self._first_row_C[chunk_B]
        for number, position in zip(chunk_B.tolist(), position_B.tolist(), strict=True):
            yield self.chunks[number], position


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
    return EncodedRows(
        RowChunk.from_batch(index, batch)
        for index, task in enumerate(tasks)
        if task.name in tables
        for batch in encode_table(encoder, tables[task.name], task.name).combine_chunks().to_batches()
    )


def encode_table(encoder: Encoder, rows: pa.Table, task_name: str) -> pa.Table:
    """Return contract rows of one task as rows of ENCODED_SCHEMA."""
    columns = [
        rows.column("row_id"),
        rows.column("query"),
        pa.array(encoder.encode(rows, task_name), pa.list_(pa.int32())),
        rows.column("label").fill_null(-1),
        rows.column("weight").fill_null(1.0),
    ]
    return pa.table(columns, schema=ENCODED_SCHEMA)


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
    task_B = encoded.tasks_of(rows)
    if len(task_B) and not 0 <= task_B.min() <= task_B.max() < num_tasks:
        raise ValueError(f"task ids {sorted(set(task_B.tolist()))} do not all lie in 0..{num_tasks - 1}")
    id_lists = [encoded.ids_of(row) for row in rows]
    task, label, weight = (
        torch.from_numpy(values) for values in (task_B, encoded.labels_of(rows), encoded.weights_of(rows))
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
