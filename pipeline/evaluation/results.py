"""Results of evaluations, comparisons and behavioral tests, with their recorded JSON form."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.evaluation.provable_precision import DecisionEvidence

SYSTEMS = ("model", "lexical", "untrained")  # evaluated side by side


@dataclass(frozen=True)
class Interval:
    """A metric and the 95 % interval of its bootstrap draws; NaN where it is not defined."""

    value: float
    low: float
    high: float

    @classmethod
    def from_json(cls, fields: Mapping[str, float | None]) -> "Interval":
        """Parse the recorded form."""
        value, low, high = (fields[name] for name in ("value", "low", "high"))
        return cls(*(math.nan if number is None else float(number) for number in (value, low, high)))

    def to_json(self) -> dict[str, float | None]:
        """Return the recorded form: null for NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


Metrics = Mapping[str, Interval]  # by name


def metrics_to_json(metrics: Metrics) -> dict[str, Any]:
    """Return the recorded form of metrics by name."""
    return {name: interval.to_json() for name, interval in metrics.items()}


def metrics_from_json(fields: Mapping[str, Any]) -> Metrics:
    """Parse metrics by name."""
    return {name: Interval.from_json(interval) for name, interval in fields.items()}


@dataclass(frozen=True)
class SliceResult:
    """Rows of one slice of a task; `metrics` is None if they are too few."""

    by: str  # dimension, such as market
    name: str
    rows: int
    relevant: int
    metrics: Metrics | None

    @property
    def has_one_class(self) -> bool:
        """True if all rows are relevant or none is."""
        return self.relevant in (0, self.rows)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "SliceResult":
        """Parse the recorded form."""
        metrics = metrics_from_json(fields["figures"]) if "figures" in fields else None
        return cls(fields["by"], fields["slice"], fields["rows"], fields["relevant"], metrics)

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        fields = {"by": self.by, "slice": self.name, "rows": self.rows, "relevant": self.relevant}
        return fields if self.metrics is None else {**fields, "figures": metrics_to_json(self.metrics)}


@dataclass(frozen=True)
class TaskEvaluation:
    """Metrics of one task's test rows."""

    rows: int
    queries: int
    relevant: int
    systems: Mapping[str, Metrics]  # by name of SYSTEMS
    model_minus_lexical_pr_auc: Interval
    slices: tuple[SliceResult, ...]  # of the model
    rows_digest: str  # of the row ids

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "TaskEvaluation":
        """Parse the recorded form."""
        return cls(
            rows=fields["rows"],
            queries=fields["queries"],
            relevant=fields["relevant"],
            systems={system: metrics_from_json(fields[system]) for system in SYSTEMS},
            model_minus_lexical_pr_auc=Interval.from_json(fields["model_minus_lexical_pr_auc"]),
            slices=tuple(SliceResult.from_json(part) for part in fields["slices"]),
            rows_digest=fields["rows_digest"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "rows": self.rows,
            "queries": self.queries,
            "relevant": self.relevant,
            **{system: metrics_to_json(metrics) for system, metrics in self.systems.items()},
            "model_minus_lexical_pr_auc": self.model_minus_lexical_pr_auc.to_json(),
            "slices": [part.to_json() for part in self.slices],
            "rows_digest": self.rows_digest,
        }


@dataclass(frozen=True)
class MetricsSummary:
    """Metrics of every task, and macro averages over tasks."""

    tasks: Mapping[str, TaskEvaluation]
    macro_pr_auc: Metrics  # by system
    worst_task: str  # by the model's PR-AUC
    model_minus_lexical_macro_pr_auc: Interval

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "MetricsSummary":
        """Parse the recorded form."""
        return cls(
            {name: TaskEvaluation.from_json(task) for name, task in fields["tasks"].items()},
            metrics_from_json(fields["macro_pr_auc"]),
            fields["worst_task"],
            Interval.from_json(fields["model_minus_lexical_macro_pr_auc"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
            "macro_pr_auc": metrics_to_json(self.macro_pr_auc),
            "worst_task": self.worst_task,
            "model_minus_lexical_macro_pr_auc": self.model_minus_lexical_macro_pr_auc.to_json(),
        }


@dataclass(frozen=True)
class SingleTaskGain:
    """Mean relative gain in PR-AUC over runs that were trained on one task each."""

    runs: Mapping[str, str]  # run by task
    mean_relative_gain: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "SingleTaskGain":
        """Parse the recorded form."""
        return cls(fields["runs"], fields["mean_relative_gain"])

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {"runs": dict(self.runs), "mean_relative_gain": self.mean_relative_gain}


@dataclass(frozen=True)
class FloorRows:
    """Number of train rows that a task's lexical floor was fitted on, and of all."""

    fitted: int
    all: int


@dataclass(frozen=True)
class Evaluation:
    """Content of evaluation.json."""

    bundle_sha256: str
    data_digest: str
    summary: MetricsSummary
    not_measured: tuple[str, ...]  # tasks without both classes in the test split
    single_task: SingleTaskGain | None = None  # None without a comparable run
    decisions: Mapping[str, DecisionEvidence] = field(default_factory=dict)  # of tasks with valid rows
    floor_rows: Mapping[str, FloorRows] = field(default_factory=dict)  # of tasks whose floor left rows out

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Evaluation":
        """Parse the recorded form."""
        gain = fields.get("single_task")
        return cls(
            fields["bundle_sha256"],
            fields["data_digest"],
            MetricsSummary.from_json(fields),
            tuple(fields["not_measured"]),
            SingleTaskGain.from_json(gain) if gain else None,
            {
                name: DecisionEvidence.from_json(evidence)
                for name, evidence in fields.get("decisions", {}).items()
            },
            {name: FloorRows(**counts) for name, counts in fields.get("floor_rows", {}).items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form. A run of one task has no key `single_task`."""
        fields = {
            "bundle_sha256": self.bundle_sha256,
            "data_digest": self.data_digest,
            **self.summary.to_json(),
            "not_measured": list(self.not_measured),
            "decisions": {name: evidence.to_json() for name, evidence in self.decisions.items()},
        }
        if self.floor_rows:
            fields["floor_rows"] = {name: asdict(counts) for name, counts in self.floor_rows.items()}
        if len(self.summary.tasks) + len(self.not_measured) > 1:
            fields["single_task"] = self.single_task.to_json() if self.single_task else None
        return fields


@dataclass(frozen=True)
class SliceDifference:
    """PR-AUC of the challenger minus that of the champion on one slice."""

    by: str
    name: str
    rows: int
    difference: Interval

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "by": self.by,
            "slice": self.name,
            "rows": self.rows,
            "difference": self.difference.to_json(),
        }


@dataclass(frozen=True)
class TaskComparison:
    """Metrics of both versions on one task, and challenger minus champion."""

    challenger: Metrics
    champion: Metrics
    difference: Metrics
    difference_D: np.ndarray  # PR-AUC difference of each bootstrap draw (D,); not recorded
    slices: tuple[SliceDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "challenger": metrics_to_json(self.challenger),
            "champion": metrics_to_json(self.champion),
            "difference": metrics_to_json(self.difference),
            "slices": [part.to_json() for part in self.slices],
        }


@dataclass(frozen=True)
class Comparison:
    """Two versions on the tasks that both have, and their speed."""

    tasks: Mapping[str, TaskComparison]
    # tasks of the champion that the challenger lacks or that have no rows of both classes
    not_compared: tuple[str, ...]
    macro_pr_auc: Interval  # challenger minus champion
    speed_ratio: float  # rows per second of the challenger over the champion's

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
            "not_compared": list(self.not_compared),
            "macro_pr_auc_difference": self.macro_pr_auc.to_json(),
            "speed_ratio": self.speed_ratio,
        }


@dataclass(frozen=True)
class CaseResult:
    """Result of one behavioral test on one task."""

    task: str
    case: str
    description: str
    value: float
    at_most: float

    @property
    def passed(self) -> bool:
        """True if the value is within its tolerance."""
        return self.value <= self.at_most

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "CaseResult":
        """Parse the recorded form."""
        return cls(fields["task"], fields["case"], fields["told"], fields["value"], fields["at_most"])

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "task": self.task,
            "case": self.case,
            "told": self.description,
            "value": self.value,
            "at_most": self.at_most,
        }


@dataclass(frozen=True)
class RuleOutcome:
    """Verdict of one rule of the promotion gate."""

    rule: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateOutcome:
    """Recorded verdict of the promotion gate, as far as a report shows it."""

    passed: bool
    against: str  # version of the champion
    rules: Sequence[RuleOutcome]
    cases: Sequence[CaseResult]
    speed_ratio: float | None = None  # rows per second over the champion's

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "GateOutcome":
        """Parse the recorded form."""
        rules = [RuleOutcome(rule["rule"], rule["passed"], rule["reason"]) for rule in fields["rules"]]
        cases = [CaseResult.from_json(case) for case in fields["behaviour"]]
        speed_ratio = fields.get("comparison", {}).get("speed_ratio")
        return cls(fields["passed"], str(fields["against"]), rules, cases, speed_ratio)
