"""Logits of contract rows, and their calibrated label probabilities.

Shape legend: N rows, C labels of the task.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.encoding.prefetch import encode_in_parts, part_row_numbers, select_rows
from pipeline.errors import RelevanceError
from pipeline.inference.calibration import calibrated_probabilities
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import Predictor
from pipeline.inference.step_plan import Plan, Step, planned

SHOWN_ROWS = 5  # row ids in a message

Encoded = TypeVar("Encoded")
Logits = TypeVar("Logits")


class NonFiniteLogitsError(RelevanceError):
    """Rows for which the model computes no finite logits."""


@planned
def plan_row_logits(
    predictor: Predictor, table: pa.Table, task: Task, batch_tokens: int, prefetch: bool = True
) -> Generator[Step[Any], None, np.ndarray]:
    """Plan the logits of contract rows of one task.

    Args:
        predictor: Model of the task.
        table: Contract rows.
        task: One of the predictor's tasks.
        batch_tokens: Largest number of tokens of a forward pass, padding included.
        prefetch: Tokenize rows while the model works on others. If False, tokenizing is a step of its own.

    Returns:
        A plan whose result is (N, C), in the order of the rows.

    Raises:
        NonFiniteLogitsError: The model computes no finite logits for some rows; the message lists them.
    """
    logits_NC = np.zeros((table.num_rows, len(task.labels)))
    if table.num_rows == 0:
        return logits_NC
    parts = yield from _plan_parts(
        lambda part: predictor.encode({task.name: part}),
        lambda encoded: predictor.plan_logits(encoded, batch_tokens),
        table,
        predictor.encoder.columns(task.name),
        prefetch,
    )
    for rows, part_logits in parts:
        logits_NC[rows] = part_logits[:, : len(task.labels)]
    _check_finite(table, logits_NC)
    return logits_NC


@planned
def plan_probabilities(
    predictor: Predictor, table: pa.Table, task: Task, batch_tokens: int, prefetch: bool = True
) -> Generator[Step[Any], None, np.ndarray]:
    """Plan the calibrated label probabilities of contract rows of one task.

    Takes the arguments of `plan_row_logits` and raises its errors.

    Returns:
        A plan whose result is (N, C), in the order of the rows.
    """
    logits_NC = yield from plan_row_logits(predictor, table, task, batch_tokens, prefetch)
    return calibrated_probabilities(logits_NC, predictor.calibration[task.name], task)


@planned
def plan_multitask_probabilities(
    multitask: MultitaskPredictor, table: pa.Table, batch_tokens: int, prefetch: bool = True
) -> Generator[Step[Any], None, dict[str, np.ndarray]]:
    """Plan the calibrated label probabilities of contract rows, of any task's folder, for every task.

    Takes the arguments of `plan_probabilities` and raises its errors.

    Returns:
        A plan whose result is (N, C) by task.
    """
    predictor = multitask.predictor
    logits = {task.name: np.zeros((table.num_rows, len(task.labels))) for task in predictor.tasks}
    if table.num_rows:
        parts = yield from _plan_parts(
            multitask.encode,
            lambda ids_by_task: multitask.plan_logits(ids_by_task, batch_tokens),
            table,
            predictor.encoder.columns(predictor.tasks[0].name),
            prefetch,
        )
        for rows, part_logits in parts:
            for name, task_logits in part_logits.items():
                logits[name][rows] = task_logits
    for task_logits in logits.values():
        _check_finite(table, task_logits)
    return {
        task.name: calibrated_probabilities(logits[task.name], predictor.calibration[task.name], task)
        for task in predictor.tasks
    }


def predict_probabilities(predictor: Predictor, table: pa.Table, task: Task, batch_tokens: int) -> np.ndarray:
    """Return the result of `plan_probabilities`."""
    return plan_probabilities(predictor, table, task, batch_tokens).run()


def predict_multitask_probabilities(
    multitask: MultitaskPredictor, table: pa.Table, batch_tokens: int
) -> dict[str, np.ndarray]:
    """Return the result of `plan_multitask_probabilities`."""
    return plan_multitask_probabilities(multitask, table, batch_tokens).run()


def _plan_parts(
    encode: Callable[[pa.Table], Encoded],
    plan_logits: Callable[[Encoded], Plan[Logits]],
    table: pa.Table,
    columns: Sequence[str],
    prefetch: bool,
) -> Generator[Step[Any], None, list[tuple[np.ndarray, Logits]]]:
    """Yield the steps of each part of the table; return each part's row numbers and logits."""
    results = []
    if prefetch:
        for rows, encoded in encode_in_parts(table, columns, encode):
            logits = yield from plan_logits(encoded).renumbered(rows)
            results.append((rows, logits))
        return results
    for rows in part_row_numbers(table, columns):
        encoding = _encode_step(encode, table, rows)
        yield encoding
        logits = yield from plan_logits(encoding.result).renumbered(rows)
        results.append((rows, logits))
    return results


def _encode_step(encode: Callable[[pa.Table], Encoded], table: pa.Table, rows: np.ndarray) -> Step[Encoded]:
    return Step(rows, lambda: encode(select_rows(table, rows)))


def _check_finite(table: pa.Table, logits_NC: np.ndarray) -> None:
    """Raise NonFiniteLogitsError if some logits are not finite."""
    bad_rows = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(bad_rows):
        shown = ", ".join(table.column("row_id").take(pa.array(bad_rows[:SHOWN_ROWS])).to_pylist())
        more = ", ..." if len(bad_rows) > SHOWN_ROWS else ""
        raise NonFiniteLogitsError(
            f"logits are not finite for {len(bad_rows)} rows: {shown}{more}; remove these rows, or train "
            "the version again"
        )
