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
from pipeline.config.splits import Split
from pipeline.config.tasks import Task
from pipeline.data.reader import find_partitions, read_split
from pipeline.encoding.batches import EncodedRows
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.errors import DataRefusedError, RetryableError
from pipeline.evaluation.bootstrap import interval
from pipeline.evaluation.calibration_fit import fit_calibration
from pipeline.evaluation.curves import curve_charts
from pipeline.evaluation.evaluation_rows import NO_TASK_WITH_BOTH_CLASSES
from pipeline.evaluation.lexical_baseline import draw_train_rows, lexical_probability
from pipeline.evaluation.multitask_gain import gain_over_single_tasks, rows_digest
from pipeline.evaluation.provable_precision import DecisionEvidence, measure_evidence
from pipeline.evaluation.results import (
    SYSTEMS,
    Evaluation,
    FloorRows,
    Interval,
    MetricsSummary,
    TaskEvaluation,
)
from pipeline.evaluation.score_reference import ScoreReference, build_reference
from pipeline.evaluation.slices import slice_names
from pipeline.evaluation.task_metrics import (
    LabeledRows,
    Predictions,
    market_column,
    metrics_with_intervals,
    predictions_from_logits,
    slice_metrics,
)
from pipeline.inference.calibration import (
    Calibration,
    calibrated_probabilities,
    relevance_probability,
)
from pipeline.inference.predictor import Predictor, build_predictor, load_predictor
from pipeline.runtime.progress import Progress, ProgressBar
from pipeline.storage.filesystem import write_bytes, write_json


@dataclass(frozen=True)
class TaskPredictions:
    """One task's test rows and the predictions of each system."""

    rows: LabeledRows
    systems: Mapping[str, Predictions]
    rows_digest: str = ""  # of the row ids


@dataclass(frozen=True)
class EvaluationRows:
    """Rows of the three splits: as tables by task, and encoded where the model predicts them."""

    tables: Mapping[Split, Mapping[str, pa.Table]]
    valid: EncodedRows
    test: EncodedRows


def run_evaluation(
    config: RunConfig, trained_dir: Path, progress: Progress, target_precision: float | None = None
) -> Evaluation:
    """Calibrate a trained bundle, publish it as <run>/bundle and write <run>/evaluation.json.

    Args:
        config: Config of the run.
        trained_dir: Bundle folder that training wrote.
        progress: Shows encoded rows, unless training encoded them, and predicted rows.
        target_precision: Target of every task in place of the bundle's own.

    Raises:
        DataRefusedError: The test split is empty or has no task with both classes.
        RetryableError: The rows changed during the evaluation.
    """
    predictor, trained = load_predictor(trained_dir)
    if target_precision is not None:
        predictor = _with_target(predictor, target_precision)
    rows = _read_rows(config, predictor, trained.tokenizer_dir, progress)
    batch_tokens = config.scoring.batch_tokens
    evidence: dict[str, DecisionEvidence] = {}
    with progress.track("evaluate", len(rows.valid) + 2 * len(rows.test), "pairs") as bar:
        runner = _LogitRunner(bar, batch_tokens)
        if len(rows.valid):
            valid_logits = runner.logits(predictor, rows.valid)
            predictor = _calibrate(predictor, rows.valid, valid_logits, rows.tables["valid"])
            evidence = _measure_evidence(predictor, rows.valid, valid_logits)
        model_logits = runner.logits(predictor, rows.test)
        untrained_logits = runner.logits(build_predictor(config), rows.test)

    max_rows = config.baseline.max_rows_per_task
    floor = {name: draw_train_rows(table, max_rows) for name, table in rows.tables["train"].items()}
    predictions = _predict_tasks(predictor, rows, floor, model_logits, untrained_logits, config.seed)
    if not predictions:
        raise DataRefusedError(NO_TASK_WITH_BOTH_CLASSES)
    _write_plots(config.run_dir / "plots", predictions)
    reference = build_reference(
        predictor,
        rows.tables["test"],
        _test_probabilities(predictor, rows.test, model_logits),
        batch_tokens,
    )
    bundle_sha256 = _publish_bundle(config.run_dir / "bundle", trained, predictor, reference)
    summary = summarize(predictions, config.seed)
    evaluation = Evaluation(
        bundle_sha256,
        trained.description["training"]["data_digest"],
        summary,
        tuple(task.name for task in config.tasks if task.name not in summary.tasks),
        gain_over_single_tasks(config.work_dir, config.name, summary.tasks)
        if len(config.tasks) > 1
        else None,
        evidence,
        _left_out(floor, rows.tables["train"]),
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


class _LogitRunner:
    """Runner of several predictions that advance one progress bar."""

    def __init__(self, bar: ProgressBar, batch_tokens: int) -> None:
        self.bar, self.batch_tokens, self.num_rows = bar, batch_tokens, 0

    def logits(self, predictor: Predictor, rows: EncodedRows) -> np.ndarray:
        plan = predictor.plan_logits(rows, self.batch_tokens)
        for step in plan:
            self.num_rows += len(step.rows)
            self.bar.update(self.num_rows)
            step.run()
        return plan.result


def _read_rows(
    config: RunConfig, predictor: Predictor, tokenizer_dir: Path, progress: Progress
) -> EvaluationRows:
    """Read the splits, and encode valid and test unless training did so with this data and tokenizer."""
    partitions = find_partitions(config.accepted_dir, config.tasks)
    plan = EncodingPlan(partitions, config.split, predictor.tasks, predictor.encoder.config, tokenizer_dir)
    folder = publish_encoded(plan, config.run_dir, progress)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    tables = {split: read_split(config.accepted_dir, config.tasks, config.split, split) for split in splits}
    rows = EvaluationRows(
        tables,
        valid=read_encoded(folder, "valid", predictor.tasks),
        test=read_encoded(folder, "test", predictor.tasks),
    )
    if not tables["test"]:
        raise DataRefusedError(
            f"test split of {config.accepted_dir} is empty; add queries or raise split.test_share"
        )
    _check_same_rows(rows.test, tables["test"], predictor.tasks)
    if len(rows.valid):
        _check_same_rows(rows.valid, tables["valid"], predictor.tasks)
    return rows


def _check_same_rows(encoded: EncodedRows, tables: Mapping[str, pa.Table], tasks: Sequence[Task]) -> None:
    """Raise RetryableError if encoded rows and tables differ."""
    tables_in_order = [tables[task.name] for task in tasks if task.name in tables]
    if tables_in_order and not encoded.row_id_N.equals(pa.concat_tables(tables_in_order).column("row_id")):
        raise RetryableError("accepted rows changed during the evaluation; run the same command again")


def _calibrate(
    predictor: Predictor, valid: EncodedRows, logits: np.ndarray, tables: Mapping[str, pa.Table]
) -> Predictor:
    """Return the predictor with calibrations fitted on valid rows; a task without any keeps the identity."""
    calibration = {}
    for index, task in enumerate(predictor.tasks):
        rows = np.flatnonzero(valid.task_N == index)
        market_N = market_column(tables[task.name]) if len(rows) else np.zeros(0, dtype=object)
        calibration[task.name] = fit_calibration(
            logits[rows, : len(task.labels)], valid.labels_of(rows), task, valid.queries_of(rows), market_N
        )
    return replace(predictor, calibration=calibration)


def _with_target(predictor: Predictor, target_precision: float) -> Predictor:
    tasks = [task.model_copy(update={"target_precision": target_precision}) for task in predictor.tasks]
    return replace(predictor, tasks=tuple(tasks))


def _measure_evidence(
    predictor: Predictor, valid: EncodedRows, logits: np.ndarray
) -> dict[str, DecisionEvidence]:
    """Return the evidence for decisions of each task with valid rows."""
    evidence = {}
    for index, task in enumerate(predictor.tasks):
        rows = np.flatnonzero(valid.task_N == index)
        if len(rows):
            calibration = predictor.calibration[task.name]
            label_probability_NC = calibrated_probabilities(
                logits[rows, : len(task.labels)], calibration, task
            )
            probability_N = relevance_probability(label_probability_NC, task)
            relevant_N = valid.labels_of(rows) >= task.relevant_from
            evidence[task.name] = measure_evidence(
                probability_N, relevant_N, task.target_precision, calibration
            )
    return evidence


def _publish_bundle(folder: Path, trained: Bundle, predictor: Predictor, reference: ScoreReference) -> str:
    """Write the trained bundle with the predictor's calibration and a reference, and return its sha256."""
    calibration = {name: fitted.model_dump(mode="json") for name, fitted in predictor.calibration.items()}
    tasks = [task.model_dump(mode="json") for task in predictor.tasks]
    description = {**trained.description, "tasks": tasks, "calibration": calibration}
    return write_bundle(folder, description, trained.tensors, trained.tokenizer_dir, reference.to_json())


def _test_probabilities(
    predictor: Predictor, test: EncodedRows, logits_NC: np.ndarray
) -> dict[str, np.ndarray]:
    """Return calibrated label probabilities (N, C) of each task that has rows."""
    probabilities = {}
    for index, task in enumerate(predictor.tasks):
        rows = np.flatnonzero(test.task_N == index)
        if len(rows):
            probabilities[task.name] = calibrated_probabilities(
                logits_NC[rows, : len(task.labels)], predictor.calibration[task.name], task
            )
    return probabilities


def _predict_tasks(
    predictor: Predictor,
    rows: EvaluationRows,
    floor: Mapping[str, pa.Table],
    model_logits: np.ndarray,
    untrained_logits: np.ndarray,
    seed: int,
) -> list[TaskPredictions]:
    """Return the predictions of all systems for each task with both classes.

    The lexical baseline learns from training rows of the model, `floor`.
    """
    predictions = []
    for index, task in enumerate(predictor.tasks):
        task_rows = np.flatnonzero(rows.test.task_N == index)
        label_N = rows.test.labels_of(task_rows)
        is_relevant_N = label_N >= task.relevant_from
        if is_relevant_N.all() or not is_relevant_N.any():
            continue  # most metrics need both classes
        table, num_labels = rows.tables["test"][task.name], len(task.labels)
        market_N = market_column(table)
        lexical_N = lexical_probability(task, floor.get(task.name), table, seed)
        systems = {
            "model": predictions_from_logits(
                model_logits[task_rows, :num_labels], predictor.calibration[task.name], task, market_N
            ),
            "lexical": Predictions(lexical_N),
            "untrained": predictions_from_logits(
                untrained_logits[task_rows, :num_labels], Calibration(), task, market_N
            ),
        }
        query_N = rows.test.queries_of(task_rows)
        labeled = LabeledRows(task, query_N, label_N, slice_names(table, task.labels))
        predictions.append(TaskPredictions(labeled, systems, rows_digest(table)))
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
