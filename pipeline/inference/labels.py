"""From a predictor's probabilities to score rows.

Shape legend: N rows, J rows judged, K of them not known before, C labels of the task.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class ScoringContext:
    """What is the same for all rows that one model scores in one go."""

    batch_tokens: int  # of one forward pass, padding included
    model_version: str
    bundle_sha256: str
    on_rows: OnRows = lambda rows: None  # gets the numbers of rows that are about to be judged
    ahead: bool = True  # whether rows may be tokenised while others are judged


@dataclass(frozen=True)
class TaskRows:
    """Contract rows of one task with the hashes of the texts that it reads."""

    table: pa.Table
    task: Task
    hash_N: np.ndarray


@dataclass(frozen=True)
class JudgedRows:
    """Label probabilities of some rows of a table."""

    row_J: np.ndarray  # row numbers
    probability_JC: np.ndarray


def score_rows(
    judge: Judge, table: pa.Table, task: Task, context: ScoringContext, known: Known = NOTHING_KNOWN
) -> pa.Table:
    """Score rows (SCORE_SCHEMA) for contract rows of one task, in their order. `known`: rows that this model
    scored before, which are not judged again. PoisonRowsError: as `judge_rows` says.
    """
    rows = TaskRows(table, task, input_hashes(table, task))
    new = np.flatnonzero(known.find(rows.hash_N) < 0)
    probability_JC = judge_rows(
        judge,
        chosen_rows(table, new),
        task,
        context.batch_tokens,
        lambda chosen: context.on_rows(new[chosen]),
        context.ahead,
    )
    return labelled(judge, rows, known, JudgedRows(new, probability_JC), context)


def score_all_tasks(
    all_tasks: AllTasksJudge,
    table: pa.Table,
    context: ScoringContext,
    known: Mapping[str, Known] | None = None,
) -> pa.Table:
    """Score rows for contract rows of any task's folder: for the model's first task in the rows' order, then
    for its second, and so on. `known`, by task: a row that any task does not know is judged, and those that
    do keep what they know.
    """
    known = known or {}
    rows = [TaskRows(table, task, input_hashes(table, task)) for task in all_tasks.judge.tasks]
    lacking = [known.get(one.task.name, NOTHING_KNOWN).find(one.hash_N) < 0 for one in rows]
    new = np.flatnonzero(np.any(lacking, axis=0))
    probabilities = judge_all_tasks(
        all_tasks,
        chosen_rows(table, new),
        context.batch_tokens,
        lambda chosen: context.on_rows(new[chosen]),
        context.ahead,
    )
    return pa.concat_tables(
        labelled(
            all_tasks.judge,
            one,
            known.get(one.task.name, NOTHING_KNOWN),
            JudgedRows(new, probabilities[one.task.name]),
            context,
        )
        for one in rows
    )


def labelled(
    judge: Judge, rows: TaskRows, known: Known, judged: JudgedRows, context: ScoringContext
) -> pa.Table:
    """Score rows of one task: what is known, and of the others, which are among the rows judged, what their
    probabilities say.
    """
    table, task, num_rows = rows.table, rows.task, rows.table.num_rows
    place_N = known.find(rows.hash_N)
    old, fresh = np.flatnonzero(place_N >= 0), place_N[judged.row_J] < 0
    new, probability_KC = judged.row_J[fresh], judged.probability_JC[fresh]
    probability_N, grade_N = np.zeros(num_rows), np.zeros(num_rows)
    label_N = np.zeros(num_rows, np.int32)
    probability_N[old] = known.probability_M[place_N[old]]
    grade_N[old] = known.grade_M[place_N[old]]
    label_N[old] = known.label_M[place_N[old]]
    probability_N[new] = relevance_probability(probability_KC, task)
    grade_N[new] = expected_grade(probability_KC)
    label_N[new] = probability_KC.argmax(axis=1)
    markets = table.column("market").to_pylist()
    columns = {
        "row_id": table.column("row_id"),
        "task": [task.name] * num_rows,
        "probability": probability_N,
        "label": label_N,
        "label_name": [task.labels[label] for label in label_N],
        "expected_grade": grade_N,
        "decision": decide(probability_N, judge.calibration[task.name], markets).tolist(),
        "model_version": [context.model_version] * num_rows,
        "bundle_sha256": [context.bundle_sha256] * num_rows,
        "input_hash": hashes_as_arrow(rows.hash_N),
    }
    return pa.table(columns).cast(SCORE_SCHEMA)
