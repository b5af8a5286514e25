"""`relevance register`, `promote`, `rollback`, `history`: versions and the promotion log."""

import logging
from typing import Any

from jobs.command_run import CommandRun
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError
from pipeline.evaluation.results import Evaluation
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.model_versions import check_registered, get_version, read_gate_report, register_version
from pipeline.registry.promotion_entries import PromotionEntry, last_rollback_of
from pipeline.registry.promotion_log import PromotionLog
from pipeline.storage.filesystem import read_json_as

logger = logging.getLogger(__name__)

HEADINGS = ("number", "at", "by", "kind", "version", "replaces", "macro PR-AUC", "reason")


def run_register(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Register the evaluated bundle of the run as challenger.

    Raises:
        ConfigError: the run has no evaluation.
    """
    evaluation_path = config.run_dir / "evaluation.json"
    if not evaluation_path.is_file():
        raise ConfigError(f"evaluation missing: {evaluation_path}; run `{run.suggest('evaluate')}` first")
    evaluation = read_json_as(evaluation_path, Evaluation.from_json)
    version = register_version(config, config.run_dir / "bundle", evaluation, run.id)
    logger.info(f"  {config.registry.model} version {version} is challenger")
    champion = PromotionLog.from_config(config).champion(connect_mlflow(config.tracking_uri))
    step = ("evaluate", "--version", version) if champion else ("promote", "--version", version)
    return {
        "model": config.registry.model,
        "version": version,
        "alias": "challenger",
        "tracking_uri": config.tracking_uri,
        "next": run.suggest(*step),
    }


def run_promote(
    config: RunConfig, version: str, run: CommandRun, override: str | None = None, begin_log: bool = False
) -> dict[str, Any]:
    """Make a version champion.

    Args:
        config: Names the model and the registry.
        version: A registered version.
        run: The command's run.
        override: Reason to promote against the gate's verdict; None to obey the gate.
        begin_log: Whether to begin a new promotion log where MLflow knows of an earlier one.

    Raises:
        GateRefusedError: the gate does not pass the version and there is no override.
    """
    client = connect_mlflow(config.tracking_uri)
    registered = get_version(client, config.registry.model, version)
    check_registered(registered)
    read_gate_report(registered)  # raises if the verdict was altered
    log = PromotionLog.from_config(config)
    if begin_log:
        log.begin(client)
    promoted = log.promote(client, str(registered.version), dict(registered.tags), override)
    entry = promoted.entry
    logger.info(
        f"  version {entry.version} is champion: macro PR-AUC {entry.macro_pr_auc:.3f}, lexical "
        f"floor {entry.lexical_macro_pr_auc:.3f}; MLflow's aliases are {promoted.aliases}"
    )
    return _champion_summary(config, entry, run)


def check_not_rolled_back(config: RunConfig, version: str) -> None:
    """Raise GateRefusedError if somebody rolled back from this version.

    `relevance run` must not undo a decision that a person made.
    """
    entries = PromotionLog.from_config(config).read(connect_mlflow(config.tracking_uri))
    rollback = last_rollback_of(entries, version)
    if rollback is not None:
        raise GateRefusedError(
            f"version {version} was rolled back on {rollback.at} by {rollback.by} "
            f"({rollback.override}); `relevance promote --config CONFIG --version {version}` makes it "
            "champion again"
        )


def run_rollback(config: RunConfig, reason: str, run: CommandRun) -> dict[str, Any]:
    """Make the previous champion champion again."""
    rollback = PromotionLog.from_config(config).roll_back(connect_mlflow(config.tracking_uri), reason)
    entry = rollback.entry
    logger.info(
        f"  version {entry.version} is champion again and replaces version "
        f"{entry.expected_champion}; MLflow's aliases are {rollback.aliases}"
    )
    return _champion_summary(config, entry, run)


def _champion_summary(config: RunConfig, entry: PromotionEntry, run: CommandRun) -> dict[str, Any]:
    return {
        "model": config.registry.model,
        "version": entry.version,
        "alias": "champion",
        "promotion": entry.number,
        "next": run.suggest("score"),
    }


def run_history(config: RunConfig, run: CommandRun, verify: bool = False) -> dict[str, Any]:
    """Print the promotion log, oldest first.

    Args:
        config: Names the model and the registry.
        run: The command's run.
        verify: Whether to check the log against MLflow and print each check.

    Raises:
        DamagedInputError: The log is not whole; with `verify`, a check failed.
    """
    log, checks = PromotionLog.from_config(config), []
    if verify:
        checks = log.verify(connect_mlflow(config.tracking_uri))
        run.table([("check", "result"), *((check.name, check.result) for check in checks)])
        if failed := [check.name for check in checks if not check.passed]:
            raise DamagedInputError(
                f"promotion log of {log.model} is broken: {', '.join(failed)}; the table says what to restore"
            )
    promotions = log.read_files()
    run.table([HEADINGS, *map(history_cells, promotions)])
    return {
        "model": config.registry.model,
        "promotions": [entry.to_json() for entry in promotions],
        **({"checks": {check.name: check.result for check in checks}} if verify else {}),
        "next": run.suggest("report"),
    }


def history_cells(entry: PromotionEntry) -> tuple[str, ...]:
    """Return the table row of one promotion."""
    reason = entry.override
    if not reason and entry.gate is not None and entry.gate.passed:
        reason = "passed the gate"
    if not reason and entry.expected_champion is None:
        reason = "beat the lexical floor"
    return (
        str(entry.number),
        entry.at,
        entry.by,
        entry.kind,
        entry.version,
        entry.expected_champion or "",
        f"{entry.macro_pr_auc:.3f}",
        reason or "",
    )
