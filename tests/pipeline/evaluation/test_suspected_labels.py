"""Suspected label errors are those that were planted, in a file that spreadsheets do not compute."""

import csv
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.suspected_labels import (
    HEADER,
    MAX_CELL_CHARS,
    MAX_SUSPECTED,
    suspected_labels,
    suspected_labels_csv,
)
from pipeline.evaluation.task_metrics import LabeledRows, Predictions
from pipeline.evaluation.version_report import TaskReport
from tests.support.reports import task_report


@pytest.fixture(scope="module")
def report() -> TaskReport:
    return task_report("two", 100)


def with_flipped_labels(report: TaskReport, flipped: list[int], probability_N: np.ndarray) -> TaskReport:
    """Return the report with some labels turned over."""
    label_N = report.rows.label_N.copy()
    label_N[flipped] = 1 - label_N[flipped]
    rows = LabeledRows(report.rows.task, report.rows.query_N, label_N, report.rows.slices)
    return replace(report, rows=rows, predictions=Predictions(probability_N))


def test_flipped_labels_of_both_classes_are_found(report: TaskReport) -> None:
    random = np.random.default_rng(0)
    probability_N = np.where(report.rows.label_N == 1, 0.9, 0.1) + 0.05 * random.random(len(report.table))
    flipped = [int(number) for label in (0, 1) for number in np.flatnonzero(report.rows.label_N == label)[:3]]
    found = suspected_labels(with_flipped_labels(report, flipped, probability_N))
    assert sorted(found) == sorted(flipped)
    own = report.rows.label_N[found]  # of the row before it was turned over
    distance = np.where(own == 1, probability_N[found], 1 - probability_N[found])
    assert (np.diff(distance) <= 0).all(), "the farthest from its label comes first"


def test_labels_are_not_suspected_without_confidence(report: TaskReport) -> None:
    certain = np.where(report.rows.label_N == 1, 0.9, 0.1)
    certain[:10] = 0.5 + 0.1 * (0.5 - report.rows.label_N[:10])  # wrong, but hardly
    assert suspected_labels(replace(report, predictions=Predictions(certain))) == []


def test_number_of_suspected_labels_is_bounded(report: TaskReport) -> None:
    count = 3 * MAX_SUSPECTED
    label_N = np.arange(count) % 2
    rows = LabeledRows(report.rows.task, np.arange(count).astype(object), label_N, {})
    task = replace(report, rows=rows, predictions=Predictions(np.where(label_N == 1, 0.0, 1.0)))
    assert len(suspected_labels(task)) == MAX_SUSPECTED


def test_csv_holds_rows_with_texts_labels_and_probabilities(report: TaskReport) -> None:
    texts = ["=1+1", "+1", "-1", "@a", 'a "b",\n c\u202e', "x" * 5_000]
    table = report.table.set_column(
        report.table.schema.get_field_index("query"),
        "query",
        pa.array([texts[number % len(texts)] for number in range(len(report.table))], pa.string()),
    )
    probability_N = np.where(report.rows.label_N == 1, 0.9, 0.1)
    task = with_flipped_labels(replace(report, table=table), list(range(len(texts))), probability_N)
    content = suspected_labels_csv([task])
    assert content == suspected_labels_csv([task])
    header, *rows = list(csv.reader(io.StringIO(content)))
    assert tuple(header) == HEADER
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    ids = report.table.column("row_id").to_pylist()[: len(texts)]
    assert cells.keys() == set(ids)
    shown = [cells[row_id]["query"] for row_id in ids]
    assert shown == ["'=1+1", "'+1", "'-1", "'@a", r'a "b",\n c\u202e', "x" * MAX_CELL_CHARS]
    for row_id, row in cells.items():
        assert row["task"] == "two" and row["label"] in ("bad", "good")
        assert row["probability"] == ("0.9000" if row["label"] == "bad" else "0.1000"), row_id
        assert "\u202e" not in row["ad_title"] and r"\u202e" in row["ad_title"]
