"""`relevance register`, `promote`, `rollback`, `history`: a bundle becomes a version, a version becomes
champion, and who did what when.
"""

from typing import Any

from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, GateRefusedError
from pipeline.registry.mlflow_client import mlflow_client
from pipeline.registry.model_versions import check_registered, check_version, read_verdict, register_version
from pipeline.registry.promotion_log import promote, read_promotions, roll_back, rolled_back
from pipeline.storage.filesystem import read_json

HISTORY = ("number", "at", "by", "kind", "version", "instead of", "macro PR-AUC", "why")


def run_register(config: RunConfig, console: Console) -> dict[str, Any]:
    """Register the evaluated bundle of the run as challenger; ConfigError if nothing was evaluated."""
    evaluation_path = config.run_dir / "evaluation.json"
    if not evaluation_path.is_file():
        raise ConfigError(
            f"{evaluation_path} does not exist; run `relevance evaluate` with this config first"
        )
    version = register_version(config, config.run_dir / "bundle", read_json(evaluation_path))
    console.say(f"  {config.registry.model} version {version} is challenger")
    return {
        "model": config.registry.model,
        "version": version,
        "alias": "challenger",
        "tracking_uri": config.tracking_uri,
    }


def run_promote(
    config: RunConfig, version: str, console: Console, override: str | None = None
) -> dict[str, Any]:
    """Promote a version; GateRefusedError if the gate does not let it pass and `override`, a reason, is not
    given.
    """
    client = mlflow_client(config)
    found = check_version(client, config.registry.model, version)
    check_registered(found)
    read_verdict(client, found)  # refused if it was altered
    record = promote(config, client, str(found.version), dict(found.tags), override)
    figures = f"macro PR-AUC {record['macro_pr_auc']:.3f}, lexical floor {record['lexical_macro_pr_auc']:.3f}"
    console.say(
        f"  version {record['version']} is champion: {figures}; MLflow's aliases are {record['aliases']}"
    )
    return {
        "model": config.registry.model,
        "version": record["version"],
        "alias": "champion",
        "promotion": record["number"],
    }


def check_not_left(config: RunConfig, version: str) -> None:
    """GateRefusedError: the version was champion and was rolled back from; what nobody types must not undo
    that.
    """
    left = rolled_back(read_promotions(config), version)
    if left is not None:
        why = f"version {version} was rolled back from on {left['at']} by {left['by']} ({left['override']})"
        raise GateRefusedError(
            f"{why}; `relevance promote --version {version}` makes it champion again, if that is wanted"
        )


def run_rollback(config: RunConfig, reason: str, console: Console) -> dict[str, Any]:
    """Go back to the champion before this one."""
    record = roll_back(config, mlflow_client(config), reason)
    aliases = f"MLflow's aliases are {record['aliases']}"
    console.say(
        f"  version {record['version']} is champion again, in the place of version "
        f"{record['expected_champion']}; {aliases}"
    )
    return {
        "model": config.registry.model,
        "version": record["version"],
        "alias": "champion",
        "promotion": record["number"],
    }


def run_history(config: RunConfig, console: Console) -> dict[str, Any]:
    """Print the promotion log, oldest first."""
    log = read_promotions(config)
    console.table([HISTORY, *(history_row(record) for record in log)])
    return {"model": config.registry.model, "promotions": log}


def history_row(record: dict[str, Any]) -> tuple[str, ...]:
    """One promotion as cells."""
    kind = record.get("kind", "promotion")
    gate = (
        "passed the gate"
        if (record.get("gate") or {}).get("passed")
        else "beat the lexical floor"
        if record["expected_champion"] is None
        else ""
    )
    why = record.get("override") or gate
    versions = (record["version"], record["expected_champion"] or "")
    return (
        str(record["number"]),
        record["at"],
        record["by"],
        kind,
        *versions,
        f"{record['macro_pr_auc']:.3f}",
        why,
    )
