"""Made-up reports of versions, for tests of the page."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.evaluation.comparison import compare_task, labeled_rows
from pipeline.evaluation.report_view import DriftFeature, VersionReport
from pipeline.evaluation.results import CaseResult, GateOutcome, Interval, RuleOutcome
from pipeline.evaluation.task_metrics import Predictions, metrics_with_intervals, slice_metrics
from pipeline.evaluation.version_report import LexicalFloor, TaskReport, VersionMetrics
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import LABEL_WORDS, planted_rows

HOSTILE = (
    '<script>document.title="taken"</script><img src=x onerror="document.title=1">'
    "<b onclick=alert(1)>\u202e\x1b[31m"
)
LABELS = {"two": ("bad", "good"), "three": ("bad", "fair", "good")}


def noisy_predictions(label_N: np.ndarray, num_labels: int, noise: float) -> Predictions:
    """Return predictions that follow the labels, with noise."""
    random = np.random.default_rng(int(noise * 10))
    score_NC = np.eye(num_labels)[label_N] + noise * random.random((len(label_N), num_labels))
    probability_NC = score_NC / score_NC.sum(axis=1, keepdims=True)
    probability_N = probability_NC[:, 1:].sum(axis=1)
    return Predictions(probability_N, probability_NC, np.where(probability_N > 0.5, "relevant", "irrelevant"))


def task_report(name: str, num_rows: int = 300) -> TaskReport:
    """Return the report of a task of LABEL_WORDS whose ads contain HTML, beside a worse version."""
    rows = planted_rows(name, num_rows, 1)
    for number, row in enumerate(rows):
        row["market"] = "de" if number % 3 == 0 else "us"
        row["ad_title"] += HOSTILE
        row["ad_description"] = "long " * 200
    labels = LABELS[name]
    assert len(labels) == len(LABEL_WORDS[name])
    task = Task(name=name, labels=labels, relevant_from=1, template="{query} {ad_title}")
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    labeled = labeled_rows(task, table)
    own, other = (noisy_predictions(labeled.label_N, len(labels), noise) for noise in (4.0, 6.0))
    metrics, _ = metrics_with_intervals(labeled, own, 1)
    comparison = compare_task(labeled, own, other, 1)
    return TaskReport(table, labeled, own, metrics, slice_metrics(labeled, own, 1), other, comparison)


def version_report(tasks: Sequence[TaskReport]) -> VersionReport:
    """Return the report of version 2, which the gate refused against version 1."""
    gate = GateOutcome(
        False,
        "1",
        [RuleOutcome("throughput", True, "1.02"), RuleOutcome("slices", False, f"worse {HOSTILE}")],
        [CaseResult("two", "negation", "is not matched better", 0.2, 0.05)],
        1.02,
    )
    return VersionReport(
        model="planted",
        version="2",
        standing="challenger",
        against="1",
        against_standing="champion",
        measured=VersionMetrics(tuple(tasks), (), Interval(0.8, 0.7, 0.9), Interval(0.1, 0.05, 0.15)),
        floor=LexicalFloor({tasks[0].rows.task.name: {"pr_auc": Interval(0.5, 0.4, 0.6)}}, None),
        verdict=gate,
        next_command="relevance evaluate --version 2",
        speed_ratio=1.02,
        cost={"adapter": "lora"},
        facts={"bundle sha256": "0" * 64},
        training={
            "loss": [(step, 1 / step) for step in range(1, 40)],
            "valid_macro_pr_auc": [(10, 0.6), (20, 0.7)],
            "learning_rate": [(1, 0.1)],
        },
        drift=[
            DriftFeature("two", "words:query", "drift", 0.4, "<i>red</i> 1.0% → 9.0%"),
            DriftFeature("two", "labels", "steady", 0.0, ""),
            DriftFeature(None, "market", "look", 0.2, "us 1.0% → 9.0%"),
        ],
        suspected_labels="version-2-suspected-labels.csv",
    )
