"""Where the heads of a training start.

Shape legend: B rows whose logits are looked at, P of one pass, T tasks, C labels of the finest task, D width.
"""

import numpy as np
import torch

from pipeline.encoding.batches import EncodedRows, collate, length_batches
from pipeline.inference.predictor import Judge

HEAD_START_ROWS = 24  # rows of a task whose mean logits its head's bias makes up for

HEAD_START_TOKENS = 1024  # of a batch of them: small, so that ranks get like shares


@torch.no_grad()
def start_heads(
    judge: Judge, encoded: EncodedRows, beginning_T: np.ndarray | None, rank: int = 0, world_size: int = 1
) -> None:
    """Start each head at its task's label shares, measured on the training rows; its logits on the first rows
    of each task. `beginning_T`: as in `collate`. Ranks share the rows and sum up what they found, so all
    start equal.
    """
    rows = np.concatenate(
        [np.flatnonzero(encoded.task_N == index)[:HEAD_START_ROWS] for index in range(len(judge.tasks))]
    )
    most_labels = max(len(task.labels) for task in judge.tasks)
    share_TC = torch.ones(len(judge.tasks), most_labels)
    for index, task in enumerate(judge.tasks):
        # none is impossible
        counts = np.bincount(encoded.label_N[encoded.task_N == index], minlength=len(task.labels)) + 1
        share_TC[index, : len(task.labels)] = torch.from_numpy(counts / counts.sum())
    pooled_BD = torch.zeros(len(rows), judge.backbone.width, device=judge.device)
    for part in length_batches(encoded.length_N[rows], HEAD_START_TOKENS)[rank::world_size]:
        batch = collate(encoded, rows[part], len(judge.tasks), judge.pad_id, beginning_T).to(judge.device)
        pooled_PD = judge.model.pooled(*batch.inputs)
        pooled_BD[torch.from_numpy(part).to(judge.device)] = pooled_PD.float()
    if world_size > 1:
        torch.distributed.all_reduce(pooled_BD)
    judge.model.heads.start_at_label_shares(
        pooled_BD, torch.from_numpy(encoded.task_N[rows]).to(judge.device), share_TC.to(judge.device)
    )
