"""From a judge's logits to score rows.

Shape legend: N rows, C labels of the task.
"""

import numpy as np
import pyarrow as pa

from pipeline.calibrate import calibrated_probabilities, decide, expected_grade, relevance_probability
from pipeline.commit import SCORE_SCHEMA
from pipeline.judge import Judge
from pipeline.tasks import Task


def judge_rows(judge: Judge, table: pa.Table, task: Task, batch_tokens: int) -> np.ndarray:
    """Calibrated label probabilities (N, C) of contract rows of one task, in their order."""
    if table.num_rows == 0:
        return np.zeros((0, len(task.labels)))
    logits_NC = judge.logits(judge.encode({task.name: table}), batch_tokens)[:, : len(task.labels)]
    return calibrated_probabilities(logits_NC, judge.calibration[task.name], task)


def score_rows(judge: Judge, table: pa.Table, task: Task, batch_tokens: int, model_version: str, bundle_sha256: str) -> pa.Table:
    """Score rows (SCORE_SCHEMA) for contract rows of one task, in their order."""
    probability_NC = judge_rows(judge, table, task, batch_tokens)
    probability_N = relevance_probability(probability_NC, task)
    label_N = probability_NC.argmax(axis=1).astype(np.int32)
    columns = {
        "row_id": table.column("row_id"),
        "task": [task.name] * table.num_rows,
        "probability": probability_N,
        "label": label_N,
        "label_name": [task.labels[label] for label in label_N],
        "expected_grade": expected_grade(probability_NC),
        "decision": decide(probability_N, judge.calibration[task.name], table.column("market").to_pylist()).tolist(),
        "model_version": [model_version] * table.num_rows,
        "bundle_sha256": [bundle_sha256] * table.num_rows,
    }
    return pa.table(columns).cast(SCORE_SCHEMA)
