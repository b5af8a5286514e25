"""Calibrated label probabilities of contract rows.

Shape legend: N rows, C labels of the task.
"""

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.encoding.prefetch import OnRows, encoded_parts
from pipeline.errors import RelevanceError
from pipeline.inference.calibration import calibrated_probabilities
from pipeline.inference.multitask_predictor import AllTasksJudge
from pipeline.inference.predictor import Judge

SHOWN_ROWS = 5  # row ids in a message


class PoisonRowsError(RelevanceError):
    """Rows that the model has no finite answer to."""


def judge_rows(
    judge: Judge,
    table: pa.Table,
    task: Task,
    batch_tokens: int,
    on_rows: OnRows = lambda rows: None,
    ahead: bool = True,
) -> np.ndarray:
    """Calibrated label probabilities (N, C) of contract rows of one task, in their order. `on_rows` gets the
    numbers of rows that are about to be judged. PoisonRowsError: the model has no finite answer to some,
    which it names.

    `ahead`: whether rows may be tokenised while others are judged; if not, `on_rows` gets those that are
    about to be tokenised too.
    """
    logits_NC = np.zeros((table.num_rows, len(task.labels)))
    if table.num_rows == 0:
        return logits_NC
    columns, before_each = judge.encoder.columns(task.name), None if ahead else on_rows
    for rows, encoded in encoded_parts(
        table, columns, lambda part: judge.encode({task.name: part}), before_each
    ):
        of_part = judge.logits(encoded, batch_tokens, lambda some, rows=rows: on_rows(rows[some]))  # type: ignore[misc]
        logits_NC[rows] = of_part[:, : len(task.labels)]
    return finite_probabilities(judge, table, task, logits_NC)


def judge_all_tasks(
    all_tasks: AllTasksJudge,
    table: pa.Table,
    batch_tokens: int,
    on_rows: OnRows = lambda rows: None,
    ahead: bool = True,
) -> dict[str, np.ndarray]:
    """The same of every task, by its name; the rows may be of any task's folder. PoisonRowsError: as
    above.
    """
    judge = all_tasks.judge
    logits = {task.name: np.zeros((table.num_rows, len(task.labels))) for task in judge.tasks}
    if table.num_rows:
        columns, before_each = judge.encoder.columns(judge.tasks[0].name), None if ahead else on_rows
        for rows, ids_by_task in encoded_parts(table, columns, all_tasks.encode, before_each):
            of_part = all_tasks.logits(ids_by_task, batch_tokens, lambda some, rows=rows: on_rows(rows[some]))  # type: ignore[misc]
            for name, of_task in of_part.items():
                logits[name][rows] = of_task
    return {task.name: finite_probabilities(judge, table, task, logits[task.name]) for task in judge.tasks}


def finite_probabilities(judge: Judge, table: pa.Table, task: Task, logits_NC: np.ndarray) -> np.ndarray:
    """Logits, calibrated. PoisonRowsError: some are not finite."""
    poison = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(poison):
        shown = ", ".join(table.column("row_id").take(pa.array(poison[:SHOWN_ROWS])).to_pylist())
        raise PoisonRowsError(
            f"the model gives no finite number for {len(poison)} rows "
            f"({shown}{', ...' if len(poison) > SHOWN_ROWS else ''})"
        )
    return calibrated_probabilities(logits_NC, judge.calibration[task.name], task)
