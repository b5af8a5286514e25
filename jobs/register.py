"""`relevance register` and `relevance promote`: a bundle becomes a version, a version becomes champion."""

from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.files import read_json
from pipeline.logs import Console
from pipeline.registry import promote, register_version


def run_register(config: RunConfig, console: Console) -> dict[str, Any]:
    """Register the evaluated bundle of the run as challenger; ConfigError if nothing was evaluated."""
    evaluation_path = config.run_dir / "evaluation.json"
    if not evaluation_path.is_file():
        raise ConfigError(f"{evaluation_path} does not exist; run `relevance evaluate` with this config first")
    version = register_version(config, config.run_dir / "bundle", read_json(evaluation_path))
    console.say(f"  {config.registry.model} version {version} is challenger")
    return {"model": config.registry.model, "version": version, "alias": "challenger", "tracking_uri": config.tracking_uri}


def run_promote(config: RunConfig, version: str, console: Console) -> dict[str, Any]:
    """Promote a version; GateRefusedError if it does not beat the lexical floor."""
    record = promote(config, version)
    console.say(f"  version {version} is champion: macro PR-AUC {record['macro_pr_auc']:.3f}, lexical floor {record['lexical_macro_pr_auc']:.3f}")
    return {"model": config.registry.model, "version": version, "alias": "champion", "promotion": record["number"]}
