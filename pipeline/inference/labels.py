"""Score rows: probability, label and decision of each contract row.

Shape legend: N rows, P predicted rows, K predicted rows without a cached score, C labels of the task.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.scoring import WhenUnproven
from pipeline.config.tasks import Task
from pipeline.encoding.prefetch import select_rows
from pipeline.inference.calibration import Calibration, decide, expected_grade, relevance_probability
from pipeline.inference.known_scores import NO_CACHED_SCORES, CachedScores, hashes_to_arrow, input_hashes
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import Predictor
from pipeline.inference.probabilities import plan_multitask_probabilities, plan_probabilities
from pipeline.inference.step_plan import Step, planned

SCORE_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("task", pa.string(), False),
        pa.field("probability", pa.float64(), False),  # calibrated, that the label counts as relevant
        pa.field("label", pa.int32(), False),  # index of the most probable label
        pa.field("label_name", pa.string(), False),
        pa.field("expected_grade", pa.float64(), False),  # mean label index
        pa.field("decision", pa.string(), False),  # relevant | irrelevant | abstain
        # target_precision | best_guess | unproven; null in labels of older releases
        pa.field("decision_basis", pa.string(), True),
        pa.field("model_version", pa.string(), False),
        pa.field("bundle_sha256", pa.string(), False),
        # of the texts that the task reads; null in labels of older releases
        pa.field("input_hash", pa.binary(16), True),
    ]
)


@dataclass(frozen=True)
class ScoringContext:
    """Model version and limits that all rows of a scoring share."""

    batch_tokens: int  # of one forward pass, padding included
    model_version: str
    bundle_sha256: str
    when_unproven: WhenUnproven = "abstain"


@dataclass(frozen=True)
class _TaskRows:
    """Contract rows of one task, the hashes of their texts, and the scores known for some of them."""

    table: pa.Table
    task: Task
    hash_N: np.ndarray
    cached: CachedScores


@dataclass(frozen=True)
class _RowProbabilities:
    """Label probabilities of some rows of a table."""

    row_P: np.ndarray  # row numbers
    probability_PC: np.ndarray


@planned
def plan_scores(
    predictor: Predictor,
    table: pa.Table,
    task: Task,
    context: ScoringContext,
    cached: CachedScores = NO_CACHED_SCORES,
    prefetch: bool = True,
) -> Generator[Step[Any], None, pa.Table]:
    """Plan the score rows of contract rows of one task.

    Args:
        predictor: Model of the task.
        table: Contract rows.
        task: One of the predictor's tasks.
        context: Model version and limits.
        cached: Scores of an earlier run of this model; rows found there are not predicted again.
        prefetch: Tokenize rows while the model works on others. If False, tokenizing is a step of its own.

    Returns:
        A plan whose result has SCORE_SCHEMA, in the order of the rows.

    Raises:
        NonFiniteLogitsError: The model computes no finite logits for some rows.
    """
    rows = _TaskRows(table, task, input_hashes(table, task), cached)
    new_rows = np.flatnonzero(cached.find(rows.hash_N) < 0)
    plan = plan_probabilities(predictor, select_rows(table, new_rows), task, context.batch_tokens, prefetch)
    probability_PC = yield from plan.renumbered(new_rows)
    predicted = _RowProbabilities(new_rows, probability_PC)
    return _score_table(predictor.calibration[task.name], rows, predicted, context)


def score_rows(
    table: pa.Table, task: Task, probability_NC: np.ndarray, calibration: Calibration, context: ScoringContext
) -> pa.Table:
    """Return the score rows (SCORE_SCHEMA) of contract rows with their label probabilities (N, C)."""
    rows = _TaskRows(table, task, input_hashes(table, task), NO_CACHED_SCORES)
    return _score_table(calibration, rows, _RowProbabilities(np.arange(len(table)), probability_NC), context)


@planned
def plan_multitask_scores(
    multitask: MultitaskPredictor,
    table: pa.Table,
    context: ScoringContext,
    cached: Mapping[str, CachedScores] | None = None,
    prefetch: bool = True,
) -> Generator[Step[Any], None, pa.Table]:
    """Plan the score rows of contract rows, of any task's folder, for every task.

    Takes the arguments of `plan_scores` and raises its errors. `cached` is by task: a row that any task lacks
    is predicted for all, and tasks that have it keep their cached score.

    Returns:
        A plan whose result has SCORE_SCHEMA: all rows for the model's first task, then for its second, and so
        on.
    """
    predictor, cached = multitask.predictor, cached or {}
    rows_by_task = [
        _TaskRows(table, task, input_hashes(table, task), cached.get(task.name, NO_CACHED_SCORES))
        for task in predictor.tasks
    ]
    is_missing = [rows.cached.find(rows.hash_N) < 0 for rows in rows_by_task]
    new_rows = np.flatnonzero(np.any(is_missing, axis=0))
    plan = plan_multitask_probabilities(
        multitask, select_rows(table, new_rows), context.batch_tokens, prefetch
    )
    probabilities = yield from plan.renumbered(new_rows)
    return pa.concat_tables(
        _score_table(
            predictor.calibration[rows.task.name],
            rows,
            _RowProbabilities(new_rows, probabilities[rows.task.name]),
            context,
        )
        for rows in rows_by_task
    )


def _score_table(
    calibration: Calibration, rows: _TaskRows, predicted: _RowProbabilities, context: ScoringContext
) -> pa.Table:
    """Return the score rows of one task from cached scores and, for the other rows, from probabilities.

    `predicted` may hold rows that are cached for this task; they keep their cached scores.
    """
    table, task, cached, num_rows = rows.table, rows.task, rows.cached, rows.table.num_rows
    position_N = cached.find(rows.hash_N)
    cached_rows = np.flatnonzero(position_N >= 0)
    is_uncached_P = position_N[predicted.row_P] < 0
    uncached_rows, probability_KC = predicted.row_P[is_uncached_P], predicted.probability_PC[is_uncached_P]

    probability_N, grade_N = np.zeros(num_rows), np.zeros(num_rows)
    label_N = np.zeros(num_rows, np.int32)
    probability_N[cached_rows] = cached.probability_M[position_N[cached_rows]]
    grade_N[cached_rows] = cached.grade_M[position_N[cached_rows]]
    label_N[cached_rows] = cached.label_M[position_N[cached_rows]]
    probability_N[uncached_rows] = relevance_probability(probability_KC, task)
    grade_N[uncached_rows] = expected_grade(probability_KC)
    label_N[uncached_rows] = probability_KC.argmax(axis=1)

    markets = table.column("market").to_pylist()
    decisions = decide(probability_N, calibration, markets, context.when_unproven)
    columns = {
        "row_id": table.column("row_id"),
        "task": [task.name] * num_rows,
        "probability": probability_N,
        "label": label_N,
        "label_name": [task.labels[label] for label in label_N],
        "expected_grade": grade_N,
        "decision": decisions.decision_N.tolist(),
        "decision_basis": decisions.basis_N.tolist(),
        "model_version": [context.model_version] * num_rows,
        "bundle_sha256": [context.bundle_sha256] * num_rows,
        "input_hash": hashes_to_arrow(rows.hash_N),
    }
    return pa.table(columns).cast(SCORE_SCHEMA)
