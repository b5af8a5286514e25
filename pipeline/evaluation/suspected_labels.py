"""Suspected label errors: rows whose label the model contradicts with confidence, as a csv file for people.

Shape legend: N rows.
"""

import csv
import io
from collections.abc import Sequence

import numpy as np

from pipeline.escaping import escape_invisible, guard_formula
from pipeline.evaluation.version_report import TaskReport
from pipeline.schema import TEXT_COLUMNS

MAX_SUSPECTED = 1_000  # of a task

MAX_CELL_CHARS = 2_000  # of a text

HEADER = ("row_id", "task", *TEXT_COLUMNS, "market", "label", "probability")


def suspected_labels(task: TaskReport) -> list[int]:
    """Return the numbers of at most MAX_SUSPECTED rows, the probability farthest from the label first.

    A label is suspected if the other class has at least one half of the probability, and at least its mean
    probability among the rows that do carry it.

    Reference: Northcutt, Jiang and Chuang 2021, Confident learning: estimating uncertainty in dataset labels.
    """
    is_relevant_N = task.rows.is_relevant_N
    probability_N = np.asarray(task.predictions.probability_N, dtype=np.float64)
    other_N = np.where(is_relevant_N, 1 - probability_N, probability_N)  # probability of the other class
    irrelevant_mean = float(np.mean(1 - probability_N[~is_relevant_N]))
    relevant_mean = float(np.mean(probability_N[is_relevant_N]))
    limit_N = np.maximum(0.5, np.where(is_relevant_N, irrelevant_mean, relevant_mean))
    suspected = np.flatnonzero(other_N >= limit_N)
    order = np.argsort(-other_N[suspected], kind="stable")
    return [int(number) for number in suspected[order[:MAX_SUSPECTED]]]


def suspected_labels_csv(tasks: Sequence[TaskReport]) -> str:
    """Return the rows with suspected labels, task by task.

    Invisible characters are spelled, and a cell that a spreadsheet would compute begins with an apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for task in tasks:
        name, labels = task.rows.task.name, task.rows.task.labels
        for number in suspected_labels(task):
            row = task.table.slice(number, 1).to_pylist()[0]
            texts = [_cell(row[column]) for column in TEXT_COLUMNS]
            label = labels[task.rows.label_N[number]]
            probability = f"{task.predictions.probability_N[number]:.4f}"
            writer.writerow(
                [_cell(row["row_id"]), name, *texts, _cell(row["market"]), _cell(label), probability]
            )
    return buffer.getvalue()


def _cell(text: str | None) -> str:
    """Return a text that is shown as it is."""
    return guard_formula(escape_invisible((text or "")[:MAX_CELL_CHARS]))
