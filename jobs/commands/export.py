"""`relevance export`: one task of a version as a PEFT adapter or as full weights."""

import logging
from pathlib import Path
from typing import Any

from jobs.command_run import CommandRun
from models.serialization.export import ExportFormat
from pipeline.config.run import RunConfig
from pipeline.registry.exports import export_task
from pipeline.registry.version_files import fetch_version, resolve_champion

logger = logging.getLogger(__name__)


def run_export(
    config: RunConfig,
    task: str,
    export_format: ExportFormat,
    version: str | None,
    out_dir: Path | None,
    run: CommandRun,
) -> dict[str, Any]:
    """Export one task of a version.

    Args:
        config: The config of the run.
        task: Name of the task.
        export_format: PEFT adapter or full weights.
        version: The registered version; None for the champion.
        out_dir: Folder to write; None for one in the run folder.
        run: The run of this command.

    Raises:
        ConfigError: The version or task does not exist, or the task cannot be exported in this format.
    """
    files = fetch_version(config, version) if version else resolve_champion(config)
    default_dir = config.run_dir / "exports" / f"version-{files.version}" / f"{task}-{export_format}"
    folder = (out_dir or default_dir).absolute()
    export_task(files, task, export_format, folder)
    logger.info(
        "  task %s of version %s exported: %s; its README.md says how to load it", task, files.version, folder
    )
    return {
        "exported": str(folder),
        "task": task,
        "format": export_format,
        "version": files.version,
        "bundle_sha256": files.bundle_sha256,
        "next": run.suggest("score"),
    }
