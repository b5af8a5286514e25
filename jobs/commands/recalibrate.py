"""`relevance recalibrate`: another target precision for a trained version, without training."""

import logging
from typing import Any

from jobs.command_run import CommandRun
from jobs.commands.evaluate import evaluate_bundle, evaluation_summary, evaluation_table
from jobs.commands.gate import gate_against_champion
from jobs.commands.versions import run_register
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.registry.version_files import fetch_version, resolve_champion

logger = logging.getLogger(__name__)


def run_recalibrate(
    config: RunConfig, target_precision: float, version: str | None, run: CommandRun
) -> dict[str, Any]:
    """Fit calibration and thresholds of a version on the valid split, evaluate, register, run the gate.

    The weights stay. The result is a new version: published labels name the version whose thresholds decided.

    Args:
        config: Config of the run; its accepted rows are those that the version was trained on.
        target_precision: New target of every task.
        version: A registered version; None: the champion.
        run: The command's run.

    Raises:
        ConfigError: The target is not between 0 and 1.
        GateRefusedError: The new version may not replace the champion.
    """
    if not 0 < target_precision < 1:
        raise ConfigError(f"--target-precision not valid: {target_precision}; it lies between 0 and 1")
    files = fetch_version(config, version) if version else resolve_champion(config)
    logger.info(f"  calibrating version {files.version} for a target precision of {target_precision}")
    evaluation = evaluate_bundle(config, files.bundle_dir, run, target_precision)
    run.result(*evaluation_table(evaluation))
    registered = run_register(config, run)
    gate_against_champion(config, registered["version"], run)
    step = run.suggest("promote", "--version", registered["version"])
    summary = evaluation_summary(config, evaluation, run)
    return {**summary, **registered, "calibrated_from": files.version, "next": step}
