"""Initialization of the heads at the start of a training.

Shape legend: B rows whose logits are measured, P rows of one pass, T tasks, C labels of the finest task, D
width.
"""

import itertools

import numpy as np
import torch

from pipeline.encoding.batches import EncodedRows, collate, length_batches
from pipeline.inference.predictor import Predictor

INIT_ROWS = 24  # rows of each task that its head's bias is fitted on

INIT_BATCH_TOKENS = 1024  # per pass: small, so that ranks get similar shares


@torch.no_grad()
def initialize_heads(
    predictor: Predictor,
    encoded: EncodedRows,
    prefix_length_T: np.ndarray | None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Set each head's bias so that its mean prediction on the first rows equals the task's label shares.

    Ranks share the rows and sum their results, so that all start equal.

    Args:
        predictor: The untrained model.
        encoded: The train split.
        prefix_length_T: Shared prefix of each task's rows, for packed rows; None: rows are padded.
        rank: Rank of this worker.
        world_size: Number of ranks.
    """
    num_tasks, device = len(predictor.tasks), predictor.device
    rows = np.concatenate([first_rows(encoded, index) for index in range(num_tasks)])
    pooled_BD = torch.zeros(len(rows), predictor.backbone.width, device=device)
    for positions in length_batches(encoded.length_N[rows], INIT_BATCH_TOKENS)[rank::world_size]:
        batch = collate(encoded, rows[positions], num_tasks, predictor.pad_id, prefix_length_T).to(device)
        pooled_PD = predictor.model.pooled_states(*batch.inputs)
        pooled_BD[torch.from_numpy(positions).to(device)] = pooled_PD.float()
    if world_size > 1:
        torch.distributed.all_reduce(pooled_BD)
    predictor.model.heads.init_biases_from_label_shares(
        pooled_BD,
        torch.from_numpy(encoded.tasks_of(rows)).to(device),
        label_shares(predictor, encoded).to(device),
    )


def first_rows(encoded: EncodedRows, task: int) -> np.ndarray:
    """Return the first INIT_ROWS row numbers of a task."""
    rows = (first + n for first, chunk in encoded.task_chunks(task) for n in range(len(chunk)))
    return np.fromiter(itertools.islice(rows, INIT_ROWS), np.int64)


def label_shares(predictor: Predictor, encoded: EncodedRows) -> torch.Tensor:
    """Return the share of each label of each task (T, C), smoothed so that none is 0."""
    most_labels = max(len(task.labels) for task in predictor.tasks)
    share_TC = torch.ones(len(predictor.tasks), most_labels)
    for index, task in enumerate(predictor.tasks):
        counts = np.ones(len(task.labels), np.int64)
        for _, chunk in encoded.task_chunks(index):
            counts += np.bincount(chunk.label, minlength=len(task.labels))
        share_TC[index, : len(task.labels)] = torch.from_numpy(counts / counts.sum())
    return share_TC
