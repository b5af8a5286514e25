"""`relevance report` and `relevance compare`: one HTML page about a version."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.command_run import CommandRun
from jobs.commands.gate import comparison_table
from jobs.row_prediction import row_predictor_of
from pipeline.config.run import RunConfig
from pipeline.data.reader import find_partitions
from pipeline.evaluation.comparison import shared_tables
from pipeline.evaluation.evaluation_rows import labeled_test_rows
from pipeline.evaluation.html_report import report_page
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.evaluation.report_view import DriftFeature, VersionReport
from pipeline.evaluation.results import GateOutcome
from pipeline.evaluation.suspected_labels import suspected_labels_csv
from pipeline.evaluation.version_report import VersionMetrics, measure_version, read_lexical_floor
from pipeline.inference.bundle_description import read_described_bundle
from pipeline.inference.row_predictor import RowPredictor
from pipeline.registry.comparable_versions import (
    ComparableVersion,
    champion_version,
    fetch_comparable_version,
)
from pipeline.registry.mlflow_client import connect_mlflow, read_metric_history
from pipeline.registry.model_versions import get_version, read_gate_report
from pipeline.registry.promotion_entries import champion_line
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.version_files import VersionFiles, fetch_version
from pipeline.registry.version_summary import describe_cost, describe_origin, describe_standing
from pipeline.storage.filesystem import write_bytes
from validation.drift.comparison import ALL_TASKS, FeatureDrift, compare_profiles
from validation.drift.profile import build_tally, read_profile

logger = logging.getLogger(__name__)

TRAINING_METRICS = ("loss", "valid_macro_pr_auc", "valid_macro_log_loss", "learning_rate")


@dataclass(frozen=True)
class _Registered:
    """A version's record in MLflow, and the champions so far."""

    client: Any
    record: Any
    champions: Sequence[str]  # versions that a rollback would return to, the champion last


@dataclass(frozen=True)
class _Measurement:
    """Metrics of a version on the test rows, beside another version's if there is one."""

    version: str
    against: str | None
    tables: dict[str, pa.Table]
    metrics: VersionMetrics
    speed_ratio: float | None = None


def run_report(config: RunConfig, version: str | None, run: CommandRun) -> dict[str, Any]:
    """Write the report of a version and log it to the version's MLflow run.

    The version is compared with the champion; the champion is compared with the one before it.

    Args:
        config: The config of the run.
        version: The registered version; None for the champion.
        run: The run of this command.
    """
    version = version or champion_version(config)
    registered = _read_registered(config, version)
    against = next((champion for champion in reversed(registered.champions) if champion != version), None)
    measured = _measure(config, version, against, run)
    path, csv_path = _write_page(config, measured, registered, f"version-{version}", run)
    for written in (csv_path, path):
        registered.client.log_artifact(registered.record.run_id, str(written), "reports")
    return {
        "version": version,
        "against": against,
        "report": str(path),
        "suspected_labels": str(csv_path),
        "next": run.suggest("history"),
    }


def run_compare(config: RunConfig, version: str, other: str, run: CommandRun) -> dict[str, Any]:
    """Measure two versions on the test rows of a run, and write the page about them; no verdict."""
    measured = _measure(config, version, other, run, is_timed=True)
    assert measured.speed_ratio is not None
    comparison = measured.metrics.comparison(measured.speed_ratio)
    registered = _read_registered(config, version)
    path, csv_path = _write_page(config, measured, registered, f"version-{version}-against-{other}", run)
    run.result(*comparison_table(comparison, version, other))
    return {
        "version": version,
        "against": other,
        **comparison.to_json(),
        "report": str(path),
        "suspected_labels": str(csv_path),
        "next": run.suggest("evaluate", "--version", version, "--against", other),
    }


def describe_drift(config: RunConfig, files: VersionFiles) -> list[DriftFeature] | None:
    """Return the drift of the accepted rows from a version's training rows; None without their profile."""
    if not files.profile_path.is_file():
        return None
    current = build_tally(find_partitions(config.accepted_dir, config.tasks))
    drift = compare_profiles(read_profile(files.profile_path), current)
    features = sorted(drift.features, key=lambda feature: -(feature.psi or 0))
    return [
        DriftFeature(
            None if feature.task == ALL_TASKS else feature.task,
            feature.feature,
            feature.verdict,
            feature.psi,
            _describe_changes(feature),
        )
        for feature in features
    ]


def _describe_changes(feature: FeatureDrift) -> str:
    return ", ".join(f"{c.category} {c.reference:.1%} → {c.current:.1%}" for c in feature.changes)


def _measure(
    config: RunConfig, version: str, against: str | None, run: CommandRun, is_timed: bool = False
) -> _Measurement:
    """Measure a version, and another one if there is one, on the test rows of a run."""
    measured = fetch_comparable_version(config, version)
    other = fetch_comparable_version(config, against) if against else None
    tables = labeled_test_rows(config.accepted_dir, config.tasks, config.split)
    logger.info(
        "  evaluate %s test rows%s",
        f"{sum(map(len, tables.values())):,}",
        f", also with version {against}" if against else "",
    )
    other_predicted, speed_ratio = None, None
    with row_predictor_of(config, run) as row_predictor:
        if other is not None and is_timed:
            tasks = measured.description.tasks, other.description.tasks
            speed_ratio = row_predictor.speed_ratio(
                measured.model, other.model, shared_tables(*tasks, tables), config.scoring
            )
        predicted = _predict(config, measured, tables, row_predictor)
        if other is not None:
            other_predicted = _predict(config, other, measured.own_tables(tables), row_predictor)
    metrics = measure_version(predicted, other_predicted, tables, config.seed)
    return _Measurement(version, against, tables, metrics, speed_ratio)


def _predict(
    config: RunConfig, version: ComparableVersion, tables: Mapping[str, pa.Table], row_predictor: RowPredictor
) -> PredictedVersion:
    """Return a version with its logits of the rows of all its tasks."""
    rows = {"test": version.own_tables(tables)}
    return version.predicted(row_predictor.logits(version.model, rows, config.evaluation_actors)["test"])


def _write_page(
    config: RunConfig, measured: _Measurement, registered: _Registered, name: str, run: CommandRun
) -> tuple[Path, Path]:
    """Write the page about a version and the csv file beside it, and return their paths."""
    version, against, model = measured.version, measured.against, config.registry.model
    client, record, champions = registered.client, registered.record, registered.champions
    gate_report = read_gate_report(record)
    verdict = GateOutcome.from_json(gate_report.to_json()) if gate_report else None
    speed_ratio = measured.speed_ratio
    if speed_ratio is None and verdict is not None and verdict.against == against:
        speed_ratio = verdict.speed_ratio
    files = fetch_version(config, version)
    folder = config.run_dir / "reports"
    path, csv_path = folder / f"{name}.html", folder / f"{name}-suspected-labels.csv"
    report = VersionReport(
        model=model,
        version=version,
        standing=describe_standing(client, model, champions, version),
        against=against,
        against_standing=describe_standing(client, model, champions, against) if against else "",
        measured=measured.metrics,
        floor=read_lexical_floor(config.run_dir / "evaluation.json", measured.tables),
        verdict=verdict,
        next_command=_next_command(verdict, champions, version, run),
        speed_ratio=speed_ratio,
        cost=describe_cost(read_described_bundle(files.bundle_dir, files.bundle_sha256)[1]),
        facts=describe_origin(record),
        training={name: read_metric_history(client, record.run_id, name) for name in TRAINING_METRICS},
        drift=describe_drift(config, files),
        suspected_labels=csv_path.name,
    )
    folder.mkdir(exist_ok=True)
    write_bytes(csv_path, suspected_labels_csv(report.measured.tasks).encode("utf-8"))
    write_bytes(path, report_page(report).encode("utf-8"))
    logger.info("  report of version %s written: %s", version, path)
    return path, csv_path


def _read_registered(config: RunConfig, version: str) -> _Registered:
    client = connect_mlflow(config.tracking_uri)
    record = get_version(client, config.registry.model, version)
    entries = champion_line(PromotionLog.from_config(config).read(client))
    return _Registered(client, record, [entry.version for entry in entries])


def _next_command(
    verdict: GateOutcome | None, champions: Sequence[str], version: str, run: CommandRun
) -> str:
    """Return the command towards the version's promotion; empty if it is champion or was refused."""
    champion = champions[-1] if champions else None
    if version == champion:
        return ""
    if champion is None or (verdict is not None and verdict.against == champion and verdict.passed):
        return run.suggest("promote", "--version", version)
    if verdict is not None and verdict.against == champion:
        return ""
    return run.suggest("evaluate", "--version", version)
