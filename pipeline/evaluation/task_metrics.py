"""Metrics of one task's rows with their intervals, over all rows and by slice.

Shape legend: N rows, C labels, D bootstrap draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.evaluation.bootstrap import ClusterBootstrap, interval
from pipeline.evaluation.metrics import (
    calibration_metrics,
    decision_metrics,
    label_metrics,
    ndcg,
    ranking_metrics,
)
from pipeline.evaluation.results import Interval, SliceResult
from pipeline.inference.calibration import (
    Calibration,
    calibrated_probabilities,
    decide,
    expected_grade,
    relevance_probability,
)

MIN_SLICE_ROWS = 20  # metrics of fewer rows are noise


@dataclass(frozen=True)
class Predictions:
    """Predictions of one system for a task's rows. The lexical baseline predicts probabilities only."""

    probability_N: np.ndarray  # of relevance
    label_probability_NC: np.ndarray | None = None
    decision_N: np.ndarray | None = None

    def select(self, chosen_N: np.ndarray) -> "Predictions":
        """Return the predictions of some rows, chosen by a mask."""
        labels, decisions = self.label_probability_NC, self.decision_N
        return Predictions(
            self.probability_N[chosen_N],
            None if labels is None else labels[chosen_N],
            None if decisions is None else decisions[chosen_N],
        )


@dataclass(frozen=True)
class LabeledRows:
    """Queries, human labels and slices of a task's rows."""

    task: Task
    query_N: np.ndarray
    label_N: np.ndarray
    slices: Mapping[str, np.ndarray]  # slice name of each row, by dimension

    @property
    def is_relevant_N(self) -> np.ndarray:
        """Mask of the rows whose label counts as relevant."""
        return self.label_N >= self.task.relevant_from

    def select(self, chosen_N: np.ndarray) -> "LabeledRows":
        """Return some rows, chosen by a mask, without slices."""
        return LabeledRows(self.task, self.query_N[chosen_N], self.label_N[chosen_N], {})


def predictions_from_logits(
    logits_NC: np.ndarray, calibration: Calibration, task: Task, market_N: np.ndarray
) -> Predictions:
    """Return the calibrated predictions of a model."""
    label_probability_NC = calibrated_probabilities(logits_NC, calibration, task)
    probability_N = relevance_probability(label_probability_NC, task)
    return Predictions(
        probability_N, label_probability_NC, decide(probability_N, calibration, market_N).decision_N
    )


def market_column(table: pa.Table) -> np.ndarray:
    """Return the market of each row as objects (N,)."""
    return np.asarray(table.column("market").to_pylist(), dtype=object)


def query_column(table: pa.Table) -> np.ndarray:
    """Return the query of each row as objects (N,)."""
    return np.asarray(table.column("query").to_pylist(), dtype=object)


def label_column(table: pa.Table) -> np.ndarray:
    """Return the label of each labeled row (N,)."""
    return table.column("label").to_numpy()


def metric_function(
    rows: LabeledRows, predictions: Predictions
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function from weights (D, N) to all metrics (D,) by name."""

    def metrics(weight_DN: np.ndarray) -> dict[str, np.ndarray]:
        probability_N, is_relevant_N = predictions.probability_N, rows.is_relevant_N
        values = ranking_metrics(probability_N, is_relevant_N, weight_DN)
        values |= calibration_metrics(probability_N, is_relevant_N, weight_DN)
        if predictions.label_probability_NC is not None:
            label_probability_NC = predictions.label_probability_NC
            by_index = label_metrics(
                label_probability_NC.argmax(1), rows.label_N, len(rows.task.labels), weight_DN
            )
            values |= {_with_label_name(name, rows.task): value_D for name, value_D in by_index.items()}
            grade_N = expected_grade(label_probability_NC)
            values |= ndcg(grade_N, rows.label_N, rows.query_N, weight_DN)
        if predictions.decision_N is not None:
            values |= decision_metrics(predictions.decision_N, is_relevant_N, weight_DN)
        return values

    return metrics


def metrics_with_intervals(
    rows: LabeledRows, predictions: Predictions, seed: int
) -> tuple[dict[str, Interval], dict[str, np.ndarray]]:
    """Return all metrics with intervals, and their bootstrap draws (D,), both by name."""
    metrics = metric_function(rows, predictions)
    value = metrics(np.ones((1, len(rows.label_N))))
    draws = ClusterBootstrap(rows.query_N, seed).draws(metrics)
    return {name: interval(float(value[name][0]), draws[name]) for name in value}, draws


def slice_metrics(rows: LabeledRows, predictions: Predictions, seed: int) -> tuple[SliceResult, ...]:
    """Return every slice; those of fewer than MIN_SLICE_ROWS rows have no metrics."""
    slices = []
    for by, name_N in rows.slices.items():
        for name in sorted(set(name_N.tolist())):
            chosen_N = name_N == name
            part, num_rows = rows.select(chosen_N), int(chosen_N.sum())
            metrics = None
            if num_rows >= MIN_SLICE_ROWS:
                metrics, _ = metrics_with_intervals(part, predictions.select(chosen_N), seed)
            slices.append(SliceResult(by, name, num_rows, int(part.is_relevant_N.sum()), metrics))
    return tuple(slices)


def _with_label_name(metric: str, task: Task) -> str:
    """Return f1_2 as f1_<name of label 2>, and other names unchanged."""
    head, _, index = metric.rpartition("_")
    return f"f1_{task.labels[int(index)]}" if head == "f1" and index.isdigit() else metric
