"""Whether a training's rows go through the model packed, without padding, and what all rows of a task begin with, its template's instruction, which
a packed pass takes once.

Shape legend: T tasks.
"""

import inspect
from typing import Any

import numpy as np
import torch

from models.packing import attend_row_by_row
from pipeline.batches import EncodedRows, collate
from pipeline.config import RunConfig
from pipeline.judge import Judge
from pipeline.task_judge import are_close, attention_window


def packed_beginnings(config: RunConfig, judge: Judge, encoded: EncodedRows) -> np.ndarray | None:
    """Tokens (T,) that each task's rows begin with, where the judge's model gives packed rows the logits that it gives padded ones; None where it
    does not, or it would not be faster."""
    # a GPU waits for its next operation at these sizes, not for tokens: on an H200 a step of SmolLM2 with 8 to 512 rows took a tenth longer so
    if judge.device.type == "cuda":
        return None
    # dropout would drop the same of a beginning for all rows of a pass
    if judge.model.pooling != "last" or config.adapter.lora_dropout:
        return None
    trunk: Any = judge.model.trunk
    if "position_ids" not in inspect.signature(trunk.forward).parameters or encoded.length_N.max() > attention_window(trunk):
        return None
    length_T = beginning_lengths(encoded, len(judge.tasks))
    return length_T if tried(judge, encoded, length_T) else None


def beginning_lengths(encoded: EncodedRows, num_tasks: int) -> np.ndarray:
    """Tokens (T,) that all rows of each task begin with, at least one less than its shortest row has; 0 of a task without two rows."""
    length_T, length_N = np.zeros(num_tasks, np.int64), encoded.length_N
    for task in range(num_tasks):
        mine = np.flatnonzero(encoded.task_N == task)
        if len(mine) > 1:
            start_M, shortest = encoded.starts[mine], int(length_N[mine].min())
            while length_T[task] < shortest - 1 and not np.ptp(encoded.ids[start_M + length_T[task]]):
                length_T[task] += 1
    return length_T


@torch.no_grad()
def tried(judge: Judge, encoded: EncodedRows, length_T: np.ndarray) -> bool:
    """Whether the model, as it trains, gives the longest rows of two tasks packed the logits that it gives them padded."""
    longest_N = np.argsort(-encoded.length_N, kind="stable")
    rows = np.concatenate([
        longest_N[encoded.task_N[longest_N] == task][:2] for task in np.unique(encoded.task_N)[:2]
    ])  # fmt: skip
    padded = collate(encoded, rows, len(length_T), judge.pad_id).to(judge.device)
    packed = collate(encoded, rows, len(length_T), judge.pad_id, length_T).to(judge.device)
    training = judge.model.training
    judge.model.train()
    try:
        attend_row_by_row(judge.model.trunk)
        logits_BC = judge.model(packed.input_ids_BS, packed.mask_BS, packed.task_B, packed.packed)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever an architecture makes of what it was not made for
        return False
    finally:
        judge.model.train(training)
    expected_BC = judge.model(padded.input_ids_BS, padded.mask_BS, padded.task_B)
    real = expected_BC.isfinite()
    return are_close(logits_BC[real], expected_BC[real], judge.backbone.dtype)
