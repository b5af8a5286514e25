"""What all training rows of a task begin with, its template's instruction, and whether the model can take that once for all rows of a pass.

Shape legend: T tasks.
"""

import inspect
from typing import Any

import numpy as np
import torch

from pipeline.batches import EncodedRows, collate
from pipeline.config import RunConfig
from pipeline.judge import Judge
from pipeline.task_judge import are_close, attention_window


def shared_beginnings(config: RunConfig, judge: Judge, encoded: EncodedRows) -> np.ndarray | None:
    """Tokens (T,) that each task's rows begin with, where the judge's model gives rows the same logits when it takes these once; None where it does
    not, or there are none."""
    # dropout would drop the same of a beginning for all rows of a pass; where activations are recomputed, transformers hands layers no earlier keys
    if judge.model.pooling != "last" or config.adapter.lora_dropout or config.training.gradient_checkpointing:
        return None
    trunk: Any = judge.model.trunk
    if "position_ids" not in inspect.signature(trunk.forward).parameters or encoded.length_N.max() > attention_window(trunk):
        return None
    length_T = beginning_lengths(encoded, len(judge.tasks))
    return length_T if length_T.any() and tried(judge, encoded, length_T) else None


def beginning_lengths(encoded: EncodedRows, num_tasks: int) -> np.ndarray:
    """Tokens (T,) that all rows of each task begin with, at least one less than its shortest row has; 0 of a task without two rows."""
    length_T = np.zeros(num_tasks, np.int64)
    for task in range(num_tasks):
        start_M = encoded.starts[:-1][encoded.task_N == task]
        if len(start_M) > 1:
            most = int(encoded.length_N[encoded.task_N == task].min()) - 1
            while length_T[task] < most and len(np.unique(encoded.ids[start_M + length_T[task]])) == 1:
                length_T[task] += 1
    return length_T


@torch.no_grad()
def tried(judge: Judge, encoded: EncodedRows, length_T: np.ndarray) -> bool:
    """Whether the model, as it trains, gives two rows of the largest task and one of another the logits that it gives the whole rows."""
    by_size = np.argsort(-np.bincount(encoded.task_N, minlength=len(length_T)), kind="stable")
    rows = np.concatenate([np.flatnonzero(encoded.task_N == task)[:count] for task, count in zip(by_size[:2], (2, 1), strict=False)])
    apart, whole = (collate(encoded, rows, len(length_T), judge.pad_id, lengths).to(judge.device) for lengths in (length_T, None))
    training = judge.model.training
    judge.model.train()
    try:
        found = judge.model(apart.input_ids_BS, apart.mask_BS, apart.task_B, apart.beginnings)
    except Exception:  # whatever an architecture makes of keys that it was not made for
        return False
    finally:
        judge.model.train(training)
    expected = judge.model(whole.input_ids_BS, whole.mask_BS, whole.task_B)
    real = expected.isfinite()
    return are_close(found[real], expected[real], judge.backbone.dtype)
