"""From a predictor's probabilities to score rows.

Shape legend: N rows, J rows judged, C labels of the task.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.encoding.prefetch import OnRows, chosen_rows
from pipeline.inference.calibration import decide, expected_grade, relevance_probability
from pipeline.inference.known_scores import NOTHING_KNOWN, Known, hashes_as_arrow, input_hashes
from pipeline.inference.multitask_predictor import AllTasksJudge
from pipeline.inference.predictor import Judge
from pipeline.inference.probabilities import judge_all_tasks, judge_rows

SCORE_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("task", pa.string(), False),
        pa.field("probability", pa.float64(), False),  # calibrated, that the label counts as relevant
        pa.field("label", pa.int32(), False),  # the most probable one
        pa.field("label_name", pa.string(), False),
        pa.field("expected_grade", pa.float64(), False),  # mean label index
        pa.field("decision", pa.string(), False),  # relevant | irrelevant | abstain
        pa.field("model_version", pa.string(), False),
        pa.field("bundle_sha256", pa.string(), False),
        # of the texts that the task reads; labels of older releases have none
        pa.field("input_hash", pa.binary(16), True),
    ]
)


def score_rows(
    judge: Judge,
    table: pa.Table,
    task: Task,
    batch_tokens: int,
    model_version: str,
    bundle_sha256: str,
    on_rows: OnRows = lambda rows: None,
    ahead: bool = True,
    known: Known = NOTHING_KNOWN,
) -> pa.Table:
    """Score rows (SCORE_SCHEMA) for contract rows of one task, in their order. `known`: rows that this model
    scored before, which are not judged again. `on_rows`, `ahead`, PoisonRowsError: as above.
    """
    hash_N = input_hashes(table, task)
    new = np.flatnonzero(known.find(hash_N) < 0)
    probability_NC = judge_rows(
        judge, chosen_rows(table, new), task, batch_tokens, lambda rows: on_rows(new[rows]), ahead
    )
    return labelled(judge, table, task, hash_N, known, new, probability_NC, model_version, bundle_sha256)


def score_all_tasks(
    all_tasks: AllTasksJudge,
    table: pa.Table,
    batch_tokens: int,
    model_version: str,
    bundle_sha256: str,
    on_rows: OnRows = lambda rows: None,
    ahead: bool = True,
    known: Mapping[str, Known] | None = None,
) -> pa.Table:
    """Score rows for contract rows of any task's folder: for the model's first task in the rows' order, then
    for its second, and so on. `known`, by task: a row that any task does not know is judged, and those that
    do keep what they know.
    """
    tasks, known = all_tasks.judge.tasks, known or {}
    hashes = {task.name: input_hashes(table, task) for task in tasks}
    lacking = [known.get(name, NOTHING_KNOWN).find(hash_N) < 0 for name, hash_N in hashes.items()]
    new = np.flatnonzero(np.any(lacking, axis=0))
    probabilities = judge_all_tasks(
        all_tasks, chosen_rows(table, new), batch_tokens, lambda rows: on_rows(new[rows]), ahead
    )
    return pa.concat_tables(
        labelled(
            all_tasks.judge,
            table,
            task,
            hashes[task.name],
            known.get(task.name, NOTHING_KNOWN),
            new,
            probabilities[task.name],
            model_version,
            bundle_sha256,
        )
        for task in tasks
    )


def labelled(
    judge: Judge,
    table: pa.Table,
    task: Task,
    hash_N: np.ndarray,
    known: Known,
    judged: np.ndarray,
    probability_JC: np.ndarray,
    model_version: str,
    bundle_sha256: str,
) -> pa.Table:
    """Score rows of one task: what is known, and of the others, which are among the rows `judged`, what their
    probabilities say.
    """
    place_N = known.find(hash_N)
    old, fresh = np.flatnonzero(place_N >= 0), place_N[judged] < 0
    new, probability_NC = judged[fresh], probability_JC[fresh]
    probability_N, grade_N, label_N = (
        np.zeros(table.num_rows),
        np.zeros(table.num_rows),
        np.zeros(table.num_rows, np.int32),
    )
    probability_N[old], grade_N[old], label_N[old] = (
        of_known[place_N[old]] for of_known in (known.probability_M, known.grade_M, known.label_M)
    )
    probability_N[new], grade_N[new] = (
        relevance_probability(probability_NC, task),
        expected_grade(probability_NC),
    )
    label_N[new] = probability_NC.argmax(axis=1)
    columns = {
        "row_id": table.column("row_id"),
        "task": [task.name] * table.num_rows,
        "probability": probability_N,
        "label": label_N,
        "label_name": [task.labels[label] for label in label_N],
        "expected_grade": grade_N,
        "decision": decide(
            probability_N, judge.calibration[task.name], table.column("market").to_pylist()
        ).tolist(),
        "model_version": [model_version] * table.num_rows,
        "bundle_sha256": [bundle_sha256] * table.num_rows,
        "input_hash": hashes_as_arrow(hash_N),
    }
    return pa.table(columns).cast(SCORE_SCHEMA)
