"""Whether a training's rows go through the model packed, without padding, and what all rows of a task begin
with, its template's instruction, which a packed pass takes once.

Shape legend: T tasks.
"""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.config.run import RunConfig
from pipeline.encoding.batches import EncodedRows, collate
from pipeline.inference.predictor import Judge
from pipeline.inference.task_predictor import are_close, attention_window


def packed_beginnings(config: RunConfig, judge: Judge, encoded: EncodedRows) -> np.ndarray | None:
    """Tokens (T,) that each task's rows begin with, where the judge's model gives packed rows the logits that
    it gives padded ones; None where it does not, or it would not be faster.
    """
    # a GPU waits for its next operation at these sizes, not for tokens; on one, packing has not been measured
    if judge.device.type == "cuda":
        return None
    # dropout would drop the same of a beginning for all rows of a pass
    if judge.model.pooling != "last" or config.adapter.lora_dropout:
        return None
    trunk: Any = judge.model.trunk
    if "position_ids" not in inspect.signature(
        trunk.forward
    ).parameters or encoded.length_N.max() > attention_window(trunk):
        return None
    length_T = beginning_lengths(encoded, len(judge.tasks))
    return length_T if tried(judge, encoded, length_T) else None


def beginning_lengths(encoded: EncodedRows, num_tasks: int) -> np.ndarray:
    """Tokens (T,) that all rows of each task begin with, at least one less than its shortest row has; 0 of a
    task without two rows.
    """
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
    """Whether the model, as it trains, gives rows packed the logits that it gives them padded, whatever lies
    before them. If so its attention is left such that it takes them, else as it was.
    """
    rows, pad_id, model = rows_to_try(encoded, length_T), judge.pad_id, judge.model
    padded = collate(encoded, rows, len(length_T), pad_id).to(judge.device)
    packed = collate(encoded, rows, len(length_T), pad_id, length_T).to(judge.device)
    assert packed.packed is not None
    first = int(packed.packed.last_B[0]) + 1  # tokens of the first row
    other_ids = torch.cat([packed.input_ids_BS[:, :first].flip(1), packed.input_ids_BS[:, first:]], dim=1)
    behind_others = replace(packed, input_ids_BS=other_ids)
    training = model.training
    model.train()
    try:
        expected_BC = model(*padded.inputs)
        model.take_packed()
        again_BC, found_BC, behind_others_BC = (
            model(*batch.inputs) for batch in (padded, packed, behind_others)
        )
        real, dtype = expected_BC.isfinite(), judge.backbone.dtype
        same = are_close(found_BC[real], expected_BC[real], dtype) and are_close(
            again_BC[real], expected_BC[real], dtype
        )
        apart = (behind_others_BC - found_BC)[1:][real[1:]].norm() <= APART * found_BC[1:][real[1:]].norm()
        good = bool(same and apart)
    except Exception:  # whatever an architecture makes of what it was not made for
        good = False
    finally:
        model.train(training)
    if not good:
        model.take_padded_only()
    return good


def rows_to_try(encoded: EncodedRows, length_T: np.ndarray) -> np.ndarray:
    """The longest row of one task and the shortest behind it, where the end of another shows most, and so of
    a second; of tasks with a beginning where there are such.
    """
    tasks = np.unique(encoded.task_N)
    chosen = []
    for task in tasks[np.argsort(length_T[tasks] == 0, kind="stable")][:2]:
        mine = np.flatnonzero(encoded.task_N == task)
        length_M = encoded.length_N[mine]
        chosen += [mine[length_M.argmax()], mine[length_M.argmin()]]
    return np.array(chosen)


# of their length, that logits may differ by the row before them: in bfloat16 one in a hundred with the order
# of sums
APART = 0.02
