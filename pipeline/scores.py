"""From a judge's logits to score rows.

Shape legend: N rows, C labels of the task.
"""

import numpy as np
import pyarrow as pa

from pipeline.calibrate import calibrated_probabilities, decide, expected_grade, relevance_probability
from pipeline.commit import SCORE_SCHEMA
from pipeline.errors import RelevanceError
from pipeline.judge import Judge
from pipeline.score_cache import NOTHING_KNOWN, Known, hashes_as_arrow, input_hashes
from pipeline.task_judge import OnRows
from pipeline.tasks import Task

SHOWN_ROWS = 5  # row ids in a message


class PoisonRowsError(RelevanceError):
    """Rows that the model has no finite answer to."""


def judge_rows(judge: Judge, table: pa.Table, task: Task, batch_tokens: int, on_rows: OnRows = lambda rows: None) -> np.ndarray:
    """Calibrated label probabilities (N, C) of contract rows of one task, in their order. `on_rows` gets the numbers of rows that are about to be
    judged. PoisonRowsError: the model has no finite answer to some, which it names."""
    if table.num_rows == 0:
        return np.zeros((0, len(task.labels)))
    logits_NC = judge.logits(judge.encode({task.name: table}), batch_tokens, on_rows)[:, : len(task.labels)]
    poison = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(poison):
        shown = ", ".join(table.column("row_id").take(pa.array(poison[:SHOWN_ROWS])).to_pylist())
        raise PoisonRowsError(f"the model gives no finite number for {len(poison)} rows ({shown}{', ...' if len(poison) > SHOWN_ROWS else ''})")
    return calibrated_probabilities(logits_NC, judge.calibration[task.name], task)


def score_rows(
    judge: Judge,
    table: pa.Table,
    task: Task,
    batch_tokens: int,
    model_version: str,
    bundle_sha256: str,
    on_rows: OnRows = lambda rows: None,
    known: Known = NOTHING_KNOWN,
) -> pa.Table:
    """Score rows (SCORE_SCHEMA) for contract rows of one task, in their order. `known`: rows that this model scored before, which are not judged
    again. `on_rows`, PoisonRowsError: as above."""
    hash_N = input_hashes(table, task)
    place_N = known.find(hash_N)
    new, old = np.flatnonzero(place_N < 0), np.flatnonzero(place_N >= 0)
    probability_N, grade_N, label_N = np.zeros(table.num_rows), np.zeros(table.num_rows), np.zeros(table.num_rows, np.int32)
    probability_N[old], grade_N[old], label_N[old] = (of_known[place_N[old]] for of_known in (known.probability_M, known.grade_M, known.label_M))
    probability_NC = judge_rows(judge, table.take(pa.array(new)) if len(old) else table, task, batch_tokens, lambda rows: on_rows(new[rows]))
    probability_N[new], grade_N[new] = relevance_probability(probability_NC, task), expected_grade(probability_NC)
    label_N[new] = probability_NC.argmax(axis=1)
    columns = {
        "row_id": table.column("row_id"),
        "task": [task.name] * table.num_rows,
        "probability": probability_N,
        "label": label_N,
        "label_name": [task.labels[label] for label in label_N],
        "expected_grade": grade_N,
        "decision": decide(probability_N, judge.calibration[task.name], table.column("market").to_pylist()).tolist(),
        "model_version": [model_version] * table.num_rows,
        "bundle_sha256": [bundle_sha256] * table.num_rows,
        "input_hash": hashes_as_arrow(hash_N),
    }
    return pa.table(columns).cast(SCORE_SCHEMA)
