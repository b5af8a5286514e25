"""`relevance report`: one HTML page about a version."""

import logging
from typing import Any

from jobs.command_run import CommandRun
from jobs.commands.validate import drift_lines
from pipeline.config.run import RunConfig
from pipeline.data.reader import find_partitions
from pipeline.evaluation.evaluation_rows import labeled_test_rows
from pipeline.evaluation.html_report import VersionReport, report_page
from pipeline.evaluation.results import GateOutcome
from pipeline.evaluation.version_report import measure_version
from pipeline.registry.mlflow_client import connect_mlflow, read_metric_history
from pipeline.registry.model_versions import get_version, read_gate_report
from pipeline.registry.promotion_entries import champion_line
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.version_files import fetch_version
from pipeline.registry.version_predictors import champion_version, load_version_predictor
from pipeline.registry.version_summary import describe_origin, describe_standing
from pipeline.storage.filesystem import write_bytes
from validation.drift.comparison import compare_profiles
from validation.drift.profile import build_tally, read_profile

logger = logging.getLogger(__name__)

TRAINING_METRICS = ("loss", "valid_macro_pr_auc", "valid_macro_log_loss", "learning_rate")


def run_report(config: RunConfig, version: str | None, run: CommandRun) -> dict[str, Any]:
    """Write the report of a version and log it to the version's MLflow run.

    The version is compared with the champion; the champion is compared with the one before it.

    Args:
        config: The config of the run.
        version: The registered version; None for the champion.
        run: The run of this command.
    """
    version = version or champion_version(config)
    client, model = connect_mlflow(config.tracking_uri), config.registry.model
    record = get_version(client, model, version)
    entries = PromotionLog.from_config(config).read(client)
    champions = [entry.version for entry in champion_line(entries)]
    against = next((champion for champion in reversed(champions) if champion != version), None)
    tables = labeled_test_rows(config.accepted_dir, config.tasks, config.split)
    predictor = load_version_predictor(config, version)
    other = load_version_predictor(config, against) if against else None
    num_rows = sum(map(len, tables.values()))
    logger.info(
        "  evaluate %s test rows%s", f"{num_rows:,}", f", also with version {against}" if against else ""
    )
    measured = measure_version(predictor, other, tables, config.scoring.batch_tokens, config.seed)
    macro = {"macro PR-AUC": measured.macro_pr_auc}
    if measured.macro_difference is not None:
        macro[f"macro PR-AUC minus that of version {against}"] = measured.macro_difference
    gate_report = read_gate_report(record)
    report = VersionReport(
        model=model,
        version=version,
        standing=describe_standing(client, model, champions, version),
        against=against,
        facts=describe_origin(record),
        verdict=GateOutcome.from_json(gate_report.to_json()) if gate_report else None,
        macro=macro,
        tasks=measured.tasks,
        training={name: read_metric_history(client, record.run_id, name) for name in TRAINING_METRICS},
        drift=describe_drift(config, version),
    )
    path = config.run_dir / "reports" / f"version-{version}.html"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, report_page(report).encode("utf-8"))
    client.log_artifact(record.run_id, str(path), "reports")
    logger.info("  report of version %s written: %s", version, path)
    return {"version": version, "against": against, "report": str(path), "next": run.suggest("history")}


def describe_drift(config: RunConfig, version: str) -> str:
    """Describe the drift of the accepted rows from a version's training rows."""
    profile = fetch_version(config, version).profile_path
    if not profile.is_file():
        return "The version carries no profile of its training rows."
    current = build_tally(find_partitions(config.accepted_dir, config.tasks))
    return "\n".join(drift_lines(compare_profiles(read_profile(profile), current)))
