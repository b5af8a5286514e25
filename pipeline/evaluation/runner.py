"""Evaluation of a trained bundle: calibration on the valid split, metrics on the test split.

A lexical baseline and the untrained model are measured beside it.

Shape legend: N rows of a task, C its labels, D bootstrap draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.serialization.bundle import Bundle, write_bundle
from pipeline.config.run import RunConfig
from pipeline.config.splits import SPLITS
from pipeline.config.tasks import Task
from pipeline.data.reader import read_split
from pipeline.errors import DataRefusedError
from pipeline.evaluation.bootstrap import interval
from pipeline.evaluation.calibration_fit import fit_calibration
from pipeline.evaluation.comparison import labeled_rows
from pipeline.evaluation.curves import curve_charts
from pipeline.evaluation.evaluation_rows import NO_TASK_WITH_BOTH_CLASSES, has_both_classes
from pipeline.evaluation.lexical_baseline import draw_train_rows, lexical_probability
from pipeline.evaluation.multitask_gain import gain_over_single_tasks, rows_digest
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.evaluation.provable_precision import DecisionEvidence, measure_evidence
from pipeline.evaluation.results import (
    SYSTEMS,
    Evaluation,
    FloorRows,
    Interval,
    MetricsSummary,
    TaskEvaluation,
)
from pipeline.evaluation.score_reference import (
    PredictedRows,
    ScoreReference,
    build_reference,
    canary_tables,
)
from pipeline.evaluation.task_metrics import (
    LabeledRows,
    Predictions,
    label_column,
    market_column,
    metrics_with_intervals,
    predictions_from_logits,
    query_column,
    slice_metrics,
)
from pipeline.inference.bundle_description import BundleDescription, read_described_bundle
from pipeline.inference.calibration import Calibration, relevance_probability
from pipeline.inference.predictor import BundleModel
from pipeline.inference.row_predictor import RowPredictor
from pipeline.storage.filesystem import write_bytes, write_json


@dataclass(frozen=True)
class TaskPredictions:
    """One task's test rows and the predictions of each system."""

    rows: LabeledRows
    systems: Mapping[str, Predictions]
    rows_digest: str = ""  # of the row ids


@dataclass(frozen=True)
class PredictedSplits:
    """Labeled contract rows by task, and the logits (N, C) of those that models predict."""

    train: Mapping[str, pa.Table]
    valid: Mapping[str, pa.Table]
    test: Mapping[str, pa.Table]
    canaries: Mapping[str, pa.Table]
    valid_logits: Mapping[str, np.ndarray]
    test_logits: Mapping[str, np.ndarray]
    canary_logits: Mapping[str, np.ndarray]
    untrained_logits: Mapping[str, np.ndarray]  # of the test rows


def run_evaluation(
    config: RunConfig,
    trained_dir: Path,
    row_predictor: RowPredictor,
    target_precision: float | None = None,
) -> Evaluation:
    """Calibrate a trained bundle, publish it as <run>/bundle and write <run>/evaluation.json.

    Args:
        config: Config of the run.
        trained_dir: Bundle folder that training wrote.
        row_predictor: Predicts the valid and test rows.
        target_precision: Target of every task in place of the bundle's own.

    Raises:
        DataRefusedError: The test split is empty or has no task with both classes.
        RelevanceError: Some rows could not be predicted; the others need not be predicted again.
    """
    trained, description = read_described_bundle(trained_dir)
    if target_precision is not None:
        description = _with_target(description, target_precision)
    rows = _predict_splits(config, BundleModel(trained_dir, trained.sha256), description.tasks, row_predictor)
    calibrated = _calibrate(description, rows)
    evidence = _measure_evidence(calibrated, rows)

    max_rows = config.baseline.max_rows_per_task
    floor = {name: draw_train_rows(table, max_rows) for name, table in rows.train.items()}
    predictions = _predict_tasks(calibrated, rows, floor, config.seed)
    if not predictions:
        raise DataRefusedError(NO_TASK_WITH_BOTH_CLASSES)
    _write_plots(config.run_dir / "plots", predictions)
    reference = _build_reference(calibrated, rows)
    bundle_sha256 = _publish_bundle(config.run_dir / "bundle", trained, calibrated, reference)
    summary = summarize(predictions, config.seed)
    evaluation = Evaluation(
        bundle_sha256,
        description.training.data_digest,
        summary,
        tuple(task.name for task in config.tasks if task.name not in summary.tasks),
        gain_over_single_tasks(config.work_dir, config.name, summary.tasks)
        if len(config.tasks) > 1
        else None,
        evidence,
        _left_out(floor, rows.train),
    )
    write_json(config.run_dir / "evaluation.json", evaluation.to_json())
    return evaluation


def summarize(predictions: Sequence[TaskPredictions], seed: int) -> MetricsSummary:
    """Measure every task and system, the model's slices, and macro averages over tasks."""
    tasks: dict[str, TaskEvaluation] = {}
    pr_auc_draws: dict[str, list[np.ndarray]] = {system: [] for system in SYSTEMS}
    for position, task in enumerate(predictions):
        tasks[task.rows.task.name], draws = _evaluate_task(task, seed + position)
        for system in SYSTEMS:
            pr_auc_draws[system].append(draws[system])
    values = {system: [task.systems[system]["pr_auc"].value for task in tasks.values()] for system in SYSTEMS}
    lead = [model - lexical for model, lexical in zip(values["model"], values["lexical"], strict=True)]
    lead_draws = [
        model_D - lexical_D
        for model_D, lexical_D in zip(pr_auc_draws["model"], pr_auc_draws["lexical"], strict=True)
    ]
    return MetricsSummary(
        tasks,
        {system: _macro_interval(values[system], pr_auc_draws[system]) for system in SYSTEMS},
        min(tasks, key=lambda name: tasks[name].systems["model"]["pr_auc"].value),
        _macro_interval(lead, lead_draws),
    )


def _left_out(floor: Mapping[str, pa.Table], train: Mapping[str, pa.Table]) -> dict[str, FloorRows]:
    """Return the numbers of rows of tasks whose floor is not fitted on all of them."""
    counts = {name: FloorRows(floor[name].num_rows, table.num_rows) for name, table in train.items()}
    return {name: rows for name, rows in counts.items() if rows.fitted < rows.all}


def _predict_splits(
    config: RunConfig, model: BundleModel, tasks: Sequence[Task], row_predictor: RowPredictor
) -> PredictedSplits:
    """Read the splits, and predict valid and test rows.

    Raises:
        DataRefusedError: The test split is empty.
    """
    train, valid, test = (
        read_split(config.accepted_dir, config.tasks, config.split, split) for split in SPLITS
    )
    if not test:
        raise DataRefusedError(
            f"test split of {config.accepted_dir} is empty; add queries or raise split.test_share"
        )
    names = [task.name for task in tasks]
    valid, test = ({name: split[name] for name in names if name in split} for split in (valid, test))
    if not test:
        raise DataRefusedError(
            f"test split of {config.accepted_dir} has no row of the model's tasks: {', '.join(names)}; name "
            "the rows that it was trained for"
        )
    # the scorer's actors check the canaries
    canaries, actors = canary_tables(tasks, test), config.evaluation_actors
    if actors == config.scoring:
        rows = {"valid": valid, "test": test, "canaries": canaries}
        logits = row_predictor.logits(model, rows, actors)
    else:
        logits = row_predictor.logits(model, {"valid": valid, "test": test}, actors)
        logits |= row_predictor.logits(model, {"canaries": canaries}, config.scoring)
    untrained = row_predictor.logits(replace(model, is_trained=False), {"test": test}, actors)
    return PredictedSplits(
        train,
        valid,
        test,
        canaries,
        logits["valid"],
        logits["test"],
        logits["canaries"],
        untrained["test"],
    )


def _with_target(description: BundleDescription, target_precision: float) -> BundleDescription:
    tasks = [task.model_copy(update={"target_precision": target_precision}) for task in description.tasks]
    return description.model_copy(update={"tasks": tuple(tasks)})


def _calibrate(description: BundleDescription, rows: PredictedSplits) -> BundleDescription:
    """Return the description with calibrations fitted on valid rows.

    A task without any keeps the identity; without valid rows of any task, all keep what they have.
    """
    if not rows.valid:
        return description
    calibration = {}
    for task in description.tasks:
        table = rows.valid.get(task.name)
        calibration[task.name] = Calibration()
        if table is not None:
            calibration[task.name] = fit_calibration(
                rows.valid_logits[task.name],
                label_column(table),
                task,
                query_column(table),
                market_column(table),
            )
    return description.model_copy(update={"calibration": calibration})


def _measure_evidence(calibrated: BundleDescription, rows: PredictedSplits) -> dict[str, DecisionEvidence]:
    """Return the evidence for decisions of each task with valid rows."""
    evidence, valid = {}, PredictedVersion.of(calibrated, rows.valid_logits)
    for task in calibrated.tasks:
        if task.name in rows.valid:
            probability_N = relevance_probability(valid.label_probabilities(task.name), task)
            relevant_N = label_column(rows.valid[task.name]) >= task.relevant_from
            calibration = calibrated.calibration[task.name]
            evidence[task.name] = measure_evidence(
                probability_N, relevant_N, task.target_precision, calibration
            )
    return evidence


def _build_reference(calibrated: BundleDescription, rows: PredictedSplits) -> ScoreReference:
    """Return the reference of the bundle."""

    def predicted(
        tables: Mapping[str, pa.Table], logits: Mapping[str, np.ndarray]
    ) -> dict[str, PredictedRows]:
        version = PredictedVersion.of(calibrated, logits)
        return {
            name: PredictedRows(table, version.label_probabilities(name)) for name, table in tables.items()
        }

    canaries = predicted(rows.canaries, rows.canary_logits)
    return build_reference(calibrated.tasks, canaries, predicted(rows.test, rows.test_logits))


def _publish_bundle(
    folder: Path, trained: Bundle, calibrated: BundleDescription, reference: ScoreReference
) -> str:
    """Write the trained bundle with another calibration and a reference, and return its sha256."""
    changed = calibrated.model_dump(mode="json", include={"tasks", "calibration"})
    description = {**trained.description, **changed}
    return write_bundle(folder, description, trained.tensors, trained.tokenizer_dir, reference.to_json())


def _predict_tasks(
    calibrated: BundleDescription, rows: PredictedSplits, floor: Mapping[str, pa.Table], seed: int
) -> list[TaskPredictions]:
    """Return the predictions of all systems for each task with both classes.

    The lexical baseline learns from training rows of the model, `floor`.
    """
    predictions = []
    for task in calibrated.tasks:
        table = rows.test.get(task.name)
        if table is None or not has_both_classes(table, task):
            continue  # most metrics need both classes
        market_N = market_column(table)
        systems = {
            "model": PredictedVersion.of(calibrated, rows.test_logits).predict(task.name, table),
            "lexical": Predictions(lexical_probability(task, floor.get(task.name), table, seed)),
            "untrained": predictions_from_logits(
                rows.untrained_logits[task.name], Calibration(), task, market_N
            ),
        }
        predictions.append(TaskPredictions(labeled_rows(task, table), systems, rows_digest(table)))
    return predictions


def _write_plots(folder: Path, predictions: Sequence[TaskPredictions]) -> None:
    """Write each task's curves as SVG files, the model's beside the lexical baseline's."""
    folder.mkdir(exist_ok=True)
    for task in predictions:
        lines = [(name, task.systems[name].probability_N) for name in ("model", "lexical")]
        for name, svg in curve_charts(lines, task.rows.is_relevant_N).items():
            path = folder / f"{task.rows.task.name}-{name.replace(' ', '-')}.svg"
            write_bytes(path, svg.encode("utf-8"))


def _evaluate_task(task: TaskPredictions, seed: int) -> tuple[TaskEvaluation, dict[str, np.ndarray]]:
    """Return one task's metrics, and the PR-AUC draws (D,) of each system."""
    rows, systems, pr_auc_draws = task.rows, {}, {}
    for system in SYSTEMS:
        systems[system], draws = metrics_with_intervals(rows, task.systems[system], seed)
        pr_auc_draws[system] = draws["pr_auc"]
    lead = systems["model"]["pr_auc"].value - systems["lexical"]["pr_auc"].value
    evaluation = TaskEvaluation(
        rows=len(rows.label_N),
        queries=len(set(rows.query_N)),
        relevant=int(rows.is_relevant_N.sum()),
        systems=systems,
        model_minus_lexical_pr_auc=interval(lead, pr_auc_draws["model"] - pr_auc_draws["lexical"]),
        slices=slice_metrics(rows, task.systems["model"], seed),
        rows_digest=task.rows_digest,
    )
    return evaluation, pr_auc_draws


def _macro_interval(values: Sequence[float], draws: Sequence[np.ndarray]) -> Interval:
    """Return the mean over tasks; each draw redraws the queries of every task."""
    return interval(float(np.mean(values)), np.mean(draws, axis=0))
