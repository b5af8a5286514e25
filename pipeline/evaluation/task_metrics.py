"""What the scores of one task are worth: every figure with its interval, for all rows and slice by slice.

Shape legend: N rows, C labels, D bootstrap draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config.tasks import Task
from pipeline.evaluation.bootstrap import Interval, QueryDraws, interval
from pipeline.evaluation.metrics import (
    calibration_figures,
    decision_figures,
    label_figures,
    ndcg,
    ranking_figures,
)

SLICE_ROWS = 20  # a slice of fewer rows is counted and not measured


@dataclass(frozen=True)
class Said:
    """What one system says of a task's rows. The lexical floor says probabilities only."""

    probability_N: np.ndarray  # of being relevant
    label_probability_NC: np.ndarray | None = None
    decision_N: np.ndarray | None = None


@dataclass(frozen=True)
class Truth:
    """A task's rows and what people said of them."""

    task: Task
    query_N: np.ndarray
    label_N: np.ndarray
    slices: Mapping[str, np.ndarray]  # by way of cutting, a name a row

    @property
    def positive_N(self) -> np.ndarray:
        """Rows whose label counts as relevant."""
        return self.label_N >= self.task.relevant_from

    def rows(self, chosen_N: np.ndarray) -> "Truth":
        """Some of the rows."""
        return Truth(self.task, self.query_N[chosen_N], self.label_N[chosen_N], {})


def figures_of(truth: Truth, said: Said) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """All figures as a function of weights (D, N)."""

    def figures(weight_DN: np.ndarray) -> dict[str, np.ndarray]:
        found = ranking_figures(said.probability_N, truth.positive_N, weight_DN)
        found |= calibration_figures(said.probability_N, truth.positive_N, weight_DN)
        if said.label_probability_NC is not None:
            labels = label_figures(
                said.label_probability_NC.argmax(1), truth.label_N, len(truth.task.labels), weight_DN
            )
            found |= {named(name, truth.task): value_D for name, value_D in labels.items()}
            grade_N = said.label_probability_NC @ np.arange(said.label_probability_NC.shape[1])
            found |= ndcg(grade_N, truth.label_N, truth.query_N, weight_DN)
        if said.decision_N is not None:
            found |= decision_figures(said.decision_N, truth.positive_N, weight_DN)
        return found

    return figures


def named(figure: str, task: Task) -> str:
    """f1_2 as f1_<name of label 2>."""
    head, _, index = figure.rpartition("_")
    return f"f1_{task.labels[int(index)]}" if head == "f1" and index.isdigit() else figure


def measured(truth: Truth, said: Said, seed: int) -> tuple[dict[str, Interval], dict[str, np.ndarray]]:
    """(figures with intervals, their draws by name (D,))."""
    figures = figures_of(truth, said)
    value = figures(np.ones((1, len(truth.label_N))))
    draws = QueryDraws(truth.query_N, seed).of(figures)
    return {name: interval(float(value[name][0]), draws[name]) for name in value}, draws


def measured_slices(truth: Truth, said: Said, seed: int) -> list[dict[str, Any]]:
    """Each slice: way of cutting, name, rows, relevant rows, and its figures if it has rows enough."""
    found = []
    for by, name_N in truth.slices.items():
        for name in sorted(set(name_N.tolist())):
            chosen_N = name_N == name
            part = truth.rows(chosen_N)
            about = {
                "by": by,
                "slice": name,
                "rows": int(chosen_N.sum()),
                "relevant": int(part.positive_N.sum()),
            }
            if about["rows"] >= SLICE_ROWS:
                intervals, _ = measured(part, rows_of(said, chosen_N), seed)
                about["figures"] = as_json(intervals)
            found.append(about)
    return found


def rows_of(said: Said, chosen_N: np.ndarray) -> Said:
    """What was said of some of the rows."""
    labels, decisions = said.label_probability_NC, said.decision_N
    return Said(
        said.probability_N[chosen_N],
        None if labels is None else labels[chosen_N],
        None if decisions is None else decisions[chosen_N],
    )


def as_json(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """Figures by name; null where one is not defined."""
    return {
        name: {key: value if np.isfinite(value) else None for key, value in asdict(one).items()}
        for name, one in intervals.items()
    }
