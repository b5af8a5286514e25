"""`relevance evaluate --version V`: the promotion gate, two versions on the same test rows."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.command_run import CommandRun
from jobs.console import aligned
from jobs.row_prediction import row_predictor_of
from pipeline.config.run import RunConfig
from pipeline.errors import GateRefusedError
from pipeline.evaluation.behavioral_tests import changed_rows, judge_cases
from pipeline.evaluation.comparison import compare_versions, shared_tables
from pipeline.evaluation.evaluation_rows import labeled_test_rows
from pipeline.evaluation.results import CaseResult, Comparison
from pipeline.inference.row_predictor import RowPredictor
from pipeline.registry.comparable_versions import (
    ComparableVersion,
    champion_version,
    fetch_comparable_version,
)
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.model_versions import data_gate_passed, get_version, write_gate_report
from pipeline.registry.promotion_gate import Evidence, GateReport, Verdict, judge_version
from pipeline.registry.promotion_log import PromotionLog
from pipeline.storage.filesystem import write_json


def run_gate(config: RunConfig, version: str, against: str, run: CommandRun) -> dict[str, Any]:
    """Decide whether a version may replace another; write the verdict to the registry and to <run>/gate.

    Raises:
        GateRefusedError: it may not.
    """
    other = champion_version(config) if against == "champion" else against
    challenger, champion = (fetch_comparable_version(config, name) for name in (version, other))
    tables = labeled_test_rows(config.accepted_dir, config.tasks, config.split)
    with row_predictor_of(config, run) as row_predictor:
        comparison, cases = measure(config, challenger, champion, tables, row_predictor)
    client = connect_mlflow(config.tracking_uri)
    tags = get_version(client, config.registry.model, version).tags
    trained_on_accepted_data = tags.get("data_gate") == "passed"
    are_rows_accepted = data_gate_passed(config.validation_dir)
    evidence = Evidence(comparison, cases, trained_on_accepted_data and are_rows_accepted)
    verdict = judge_version(version, other, evidence, config.promotion)
    report = GateReport(verdict, comparison.to_json(), tuple(cases))
    path = config.run_dir / "gate" / f"version-{version}-against-{other}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, report.to_json())
    write_gate_report(client, config.registry.model, report)
    run.result(*comparison_table(comparison, version, other))
    run.result(*verdict_table(verdict))
    if not verdict.passed:
        raise GateRefusedError(
            f"version {version} refused: it may not replace version {other}: {'; '.join(verdict.refusals())}"
        )
    return {
        "version": version,
        "against": other,
        "gate": str(path),
        "passed": True,
        "next": suggest_after_pass(PromotionLog.from_config(config).champion(client), version, other, run),
    }


def measure(
    config: RunConfig,
    version: ComparableVersion,
    other: ComparableVersion,
    tables: Mapping[str, pa.Table],
    row_predictor: RowPredictor,
) -> tuple[Comparison, list[CaseResult]]:
    """Compare two versions on the test rows of the tasks that both have, and run the behavioral tests.

    Raises:
        ConfigError: The versions have no task in common, or one with other labels.
    """
    shared = shared_tables(version.description.tasks, other.description.tasks, tables)
    changed, actors = changed_rows(version.own_tables(tables)), config.evaluation_actors
    logits = row_predictor.logits(version.model, {"test": shared, "behaviour": changed}, actors)
    other_logits = row_predictor.logits(other.model, {"test": shared}, actors)
    # on the device that scoring uses
    speed_ratio = row_predictor.speed_ratio(version.model, other.model, shared, config.scoring)
    comparison = compare_versions(
        version.predicted(logits["test"]),
        other.predicted(other_logits["test"]),
        shared,
        speed_ratio,
        config.seed,
    )
    cases = judge_cases(version.predicted(logits["behaviour"]), changed, config.promotion.tolerances)
    return comparison, cases


def suggest_after_pass(champion: str | None, version: str, other: str, run: CommandRun) -> str:
    """Return the next command for a version that passed; only a comparison with the champion promotes it."""
    if champion == version:
        return run.suggest("score")
    if champion not in (None, other):
        return run.suggest("evaluate", "--version", version)
    return run.suggest("promote", "--version", version)


def gate_against_champion(config: RunConfig, version: str, run: CommandRun) -> None:
    """Run the gate if another version is champion; GateRefusedError if it refuses."""
    champion = PromotionLog.from_config(config).champion(connect_mlflow(config.tracking_uri))
    if champion not in (None, version):
        run_gate(config, version, "champion", run)


def comparison_table(comparison: Comparison, version: str, other: str) -> list[str]:
    """Return PR-AUC of both versions and the difference, task by task, as lines of a table."""
    rows = [("task", f"version {version}", f"version {other}", "difference", "95 % interval")]
    for name, task in comparison.tasks.items():
        gap = task.difference["pr_auc"]
        cells = (
            f"{task.challenger['pr_auc'].value:.3f}",
            f"{task.champion['pr_auc'].value:.3f}",
            f"{gap.value:+.3f}",
        )
        rows.append((name, *cells, f"{gap.low:+.3f} to {gap.high:+.3f}"))
    macro = comparison.macro_pr_auc
    rows.append(("macro PR-AUC", "", "", f"{macro.value:+.3f}", f"{macro.low:+.3f} to {macro.high:+.3f}"))
    lines = [f"  {line}" for line in aligned(rows)]
    return [*lines, f"  rows a second, relative to version {other}: {comparison.speed_ratio:.2f}"]


def verdict_table(verdict: Verdict) -> list[str]:
    """Return one line a rule of the gate, and the decision."""
    lines = [
        f"  {'passed ' if rule.passed else 'REFUSED'}  {rule.rule}: {rule.reason}" for rule in verdict.rules
    ]
    decision = "may" if verdict.passed else "may NOT"
    return [*lines, f"  version {verdict.version} {decision} replace version {verdict.against}"]
