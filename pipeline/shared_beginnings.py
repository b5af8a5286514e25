"""What all training rows of a task begin with, its template's instruction, and whether the model can take that once for all rows of a pass.

Shape legend: T tasks.
"""

import inspect
import math
from typing import Any

import numpy as np
import torch

from pipeline.batches import EncodedRows, collate
from pipeline.config import RunConfig
from pipeline.judge import Judge
from pipeline.task_judge import are_close, attention_window


def shared_beginnings(config: RunConfig, judge: Judge, encoded: EncodedRows) -> np.ndarray | None:
    """Tokens (T,) that each task's rows begin with, where the judge's model gives rows the same logits when it takes these once; None where it does
    not, there are none, or it would not be faster."""
    # a GPU waits for its next operation at these sizes, not for tokens: on an H200 a step of SmolLM2 with 8 to 512 rows took a tenth longer so
    if judge.device.type == "cuda":
        return None
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
    """Whether the model, as it trains, gives the longest two rows of one task and the longest of another the logits that it gives the whole rows."""
    longest_N = np.argsort(-encoded.length_N, kind="stable")
    rows = np.concatenate([
        longest_N[encoded.task_N[longest_N] == task][:count] for task, count in zip(np.flatnonzero(length_T), (2, 1), strict=False)
    ])  # fmt: skip
    whole = collate(encoded, rows, len(length_T), judge.pad_id).to(judge.device)
    apart = collate(encoded, rows, len(length_T), judge.pad_id, length_T, worth_it=math.inf).to(judge.device)
    training = judge.model.training
    judge.model.train()
    try:
        logits_BC = judge.model(apart.input_ids_BS, apart.mask_BS, apart.task_B, apart.beginnings)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever an architecture makes of keys that it was not made for
        return False
    finally:
        judge.model.train(training)
    expected_BC = judge.model(whole.input_ids_BS, whole.mask_BS, whole.task_B)
    real = expected_BC.isfinite()
    return are_close(logits_BC[real], expected_BC[real], judge.backbone.dtype)
