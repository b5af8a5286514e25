"""Test whether a training can pack its rows without padding, and the prefix that rows of a task share.

A packed pass processes the shared prefix, the instruction of a task's template, once.

Shape legend: B rows, S tokens, C labels, T tasks, M rows of one task.
"""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.config import AdapterConfig
from pipeline.encoding.batches import EncodedRows, collate
from pipeline.inference.predictor import Predictor
from pipeline.inference.task_predictor import attention_window, logits_are_close

# relative difference that other tokens in front of a row may cause in its logits: in bfloat16 the order of
# sums causes up to 0.01
MAX_NEIGHBOR_EFFECT = 0.02


def probe_packing(predictor: Predictor, encoded: EncodedRows, adapter: AdapterConfig) -> np.ndarray | None:
    """Return the shared prefix length of each task (T,) if rows can be packed, else None.

    They can if the model gives packed rows the logits of padded ones. Packing is then enabled in the model.
    """
    # at these sizes a GPU waits for its next operation and not for tokens; packing is not measured on one
    if predictor.device.type == "cuda":
        return None
    # dropout would drop the same elements of a prefix for all rows of a pass
    if predictor.model.pooling != "last" or adapter.lora_dropout:
        return None
    trunk: Any = predictor.model.trunk
    takes_positions = "position_ids" in inspect.signature(trunk.forward).parameters
    if not takes_positions or encoded.length_N.max() > attention_window(trunk):
        return None
    length_T = shared_prefix_lengths(encoded, len(predictor.tasks))
    return length_T if packing_is_exact(predictor, encoded, length_T) else None


def shared_prefix_lengths(encoded: EncodedRows, num_tasks: int) -> np.ndarray:
    """Return the number of tokens (T,) that all rows of each task begin with.

    Every row keeps at least one token behind the prefix. A task with fewer than two rows has none.
    """
    length_T = np.zeros(num_tasks, np.int64)
    for task in range(num_tasks):
        chunks = [chunk for _, chunk in encoded.task_chunks(task)]
        if sum(map(len, chunks)) > 1:
            prefix = encoded.ids_of(encoded.task_chunks(task)[0][0])
            length = max(0, min(int(np.diff(chunk.starts).min()) for chunk in chunks) - 1)
            for chunk in chunks:
                start_M, common = chunk.starts[:-1], 0
                while common < length and (chunk.ids[start_M + common] == prefix[common]).all():
                    common += 1
                length = common
            length_T[task] = length
    return length_T


@torch.no_grad()
def packing_is_exact(predictor: Predictor, encoded: EncodedRows, length_T: np.ndarray) -> bool:
    """Return whether the model in training mode gives packed rows the logits of padded ones.

    Rows must not see their neighbours in a pass. Packing stays enabled only if the result is true.
    """
    model = predictor.model
    was_training = model.training
    model.train()
    try:
        is_exact = _compare_packed_and_padded(predictor, encoded, length_T)
    except Exception:  # an architecture without support for packing may raise anything
        is_exact = False
    finally:
        model.train(was_training)
    if not is_exact:
        model.disable_packing()
    return is_exact


def _compare_packed_and_padded(predictor: Predictor, encoded: EncodedRows, length_T: np.ndarray) -> bool:
    rows, model, dtype = probe_rows(encoded, length_T), predictor.model, predictor.backbone.dtype
    padded = collate(encoded, rows, len(length_T), predictor.pad_id).to(predictor.device)
    packed = collate(encoded, rows, len(length_T), predictor.pad_id, length_T).to(predictor.device)
    assert packed.packed is not None
    first_tokens = int(packed.packed.last_B[0]) + 1  # of the first row
    head_BS, tail_BS = packed.input_ids_BS[:, :first_tokens], packed.input_ids_BS[:, first_tokens:]
    other_neighbor = replace(packed, input_ids_BS=torch.cat([head_BS.flip(1), tail_BS], dim=1))
    expected_BC = model(*padded.inputs)
    model.enable_packing()
    padded_again_BC = model(*padded.inputs)
    packed_BC = model(*packed.inputs)
    other_neighbor_BC = model(*other_neighbor.inputs)
    real = expected_BC.isfinite()
    if not logits_are_close(packed_BC[real], expected_BC[real], dtype):
        return False
    if not logits_are_close(padded_again_BC[real], expected_BC[real], dtype):
        return False
    effect = (other_neighbor_BC - packed_BC)[1:][real[1:]].norm()
    return bool(effect <= MAX_NEIGHBOR_EFFECT * packed_BC[1:][real[1:]].norm())


def probe_rows(encoded: EncodedRows, length_T: np.ndarray) -> np.ndarray:
    """Return the rows to compare: the longest and the shortest row of up to two tasks.

    A short row behind a long one best shows a leak across the end of a row. Tasks with a shared prefix come
    first.
    """
    tasks = np.unique(encoded.task_N)
    chosen = []
    for task in tasks[np.argsort(length_T[tasks] == 0, kind="stable")][:2]:
        for find in (np.argmax, np.argmin):
            candidates = [first + find(np.diff(chunk.starts)) for first, chunk in encoded.task_chunks(task)]
            chosen.append(candidates[find(encoded.length_N[candidates])])
    return np.array(chosen)
