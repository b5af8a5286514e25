"""`relevance evaluate`: calibrate on the valid split, measure on the test split, print the table."""

import logging
import math
from pathlib import Path
from typing import Any

from jobs.command_run import CommandRun
from jobs.console import aligned
from jobs.row_prediction import row_predictor_of
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.provable_precision import DecisionEvidence
from pipeline.evaluation.results import Evaluation
from pipeline.evaluation.runner import run_evaluation

logger = logging.getLogger(__name__)

HEADINGS = ("task", "rows", "system", "AUC", "PR-AUC", "95 % interval", "defects", "macro F1", "ECE")

SHOWN_METRICS = ("roc_auc", "pr_auc", "defect_pr_auc", "macro_f1", "calibration_error")

SYSTEM_NAMES = {"model": "model", "lexical": "lexical floor", "untrained": "untrained"}


def evaluate_trained(config: RunConfig, run: CommandRun) -> Evaluation:
    """Evaluate the trained bundle of the run.

    Raises:
        ConfigError: The run has no trained bundle.
    """
    trained_dir = config.run_dir / "trained"
    if not trained_dir.is_dir():
        raise ConfigError(f"trained bundle missing: {trained_dir}; run `{run.suggest('train')}` first")
    return evaluate_bundle(config, trained_dir, run)


def evaluate_bundle(
    config: RunConfig, bundle_dir: Path, run: CommandRun, target_precision: float | None = None
) -> Evaluation:
    """Evaluate a bundle, and log which tasks are not measured and which decisions are not proven."""
    with row_predictor_of(config, run) as row_predictor:
        evaluation = run_evaluation(config, bundle_dir, row_predictor, target_precision)
    if evaluation.not_measured:
        tasks = ", ".join(evaluation.not_measured)
        logger.info(f"  tasks not measured: {tasks}; their test rows lack one of the two classes")
    for task, evidence in evaluation.decisions.items():
        for line in unproven_lines(evidence, config.split.valid_share):
            logger.info(f"  {task}: {line}")
    return evaluation


def evaluation_summary(config: RunConfig, evaluation: Evaluation, run: CommandRun) -> dict[str, Any]:
    """Return the closing JSON of an evaluation."""
    return {
        "bundle": str(config.run_dir / "bundle"),
        "evaluation": str(config.run_dir / "evaluation.json"),
        "macro_pr_auc": evaluation.summary.macro_pr_auc["model"].value,
        "next": run.suggest("register"),
    }


def run_evaluate(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Evaluate the trained bundle and print its metrics."""
    evaluation = evaluate_trained(config, run)
    run.result(*evaluation_table(evaluation))
    return evaluation_summary(config, evaluation, run)


def unproven_lines(evidence: DecisionEvidence, valid_share: float) -> list[str]:
    """Return one line for each decision whose target precision the valid split cannot prove."""
    lines = []
    for name, side in (("relevant", evidence.relevant), ("irrelevant", evidence.irrelevant)):
        if side.is_proven:
            continue
        proven = f"the valid split proves a precision of {side.provable_precision:.2f}"
        if side.rows_needed is None:
            cure = "more rows alone would not prove it; improve the model or lower target_precision"
        else:
            cure = f"about {math.ceil(side.rows_needed / valid_share):,} more judged rows would prove it"
        lines.append(f"no row is decided {name} at target_precision {evidence.target:g}: {proven}; {cure}")
    return lines


def evaluation_table(evaluation: Evaluation) -> list[str]:
    """Return the metrics of every task and system, and the macro averages, as a table."""
    summary = evaluation.summary
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name, task in summary.tasks.items():
        for system, shown in SYSTEM_NAMES.items():
            metrics = task.systems[system]
            pr_auc = metrics["pr_auc"]
            first = (name, f"{task.rows:,}") if system == "model" else ("", "")
            values = [f"{metrics[metric].value:.3f}" if metric in metrics else "" for metric in SHOWN_METRICS]
            rows.append((*first, shown, *values[:2], f"{pr_auc.low:.3f} to {pr_auc.high:.3f}", *values[2:]))
    for system, shown in SYSTEM_NAMES.items():
        macro = summary.macro_pr_auc[system]
        title = "macro" if system == "model" else ""
        interval = f"{macro.low:.3f} to {macro.high:.3f}"
        rows.append((title, "", shown, "", f"{macro.value:.3f}", interval, "", "", ""))
    lines = [f"  {line}" for line in aligned(rows)]
    lead = summary.model_minus_lexical_macro_pr_auc
    lines.append(
        f"  model minus lexical floor, macro PR-AUC: {lead.value:+.3f} (95 % interval "
        f"{lead.low:+.3f} to {lead.high:+.3f})"
    )
    lines += [
        f"  lexical floor of {name}: fitted on {rows.fitted:,} of {rows.all:,} train rows "
        "(baseline.max_rows_per_task)"
        for name, rows in evaluation.floor_rows.items()
    ]
    gain = evaluation.single_task
    if gain:
        lines.append(
            f"  PR-AUC over runs of one task ({', '.join(gain.runs.values())}): "
            f"{gain.mean_relative_gain:+.1%} on the mean"
        )
    return [lines[0], "  " + "-" * (len(lines[0]) - 2), *lines[1:]]
