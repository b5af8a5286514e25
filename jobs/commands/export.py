"""`relevance export`: one task of a version as a PEFT adapter or as full weights."""

from pathlib import Path
from typing import Any

from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.registry.exports import ExportFormat, export_task
from pipeline.registry.version_files import fetch_version, resolve_champion


def run_export(
    config: RunConfig,
    task: str,
    export_format: ExportFormat,
    version: str | None,
    out_dir: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Export a version, the champion if none is named; ConfigError says what does not exist or cannot be
    exported.
    """
    fetched = fetch_version(config, version) if version else resolve_champion(config)
    folder = (
        out_dir or config.run_dir / "exports" / f"version-{fetched.version}" / f"{task}-{export_format}"
    ).absolute()
    export_task(fetched, task, export_format, folder)
    console.say(
        f"  task {task} of version {fetched.version} is in {folder}; its README.md says how to load it"
    )
    return {
        "exported": str(folder),
        "task": task,
        "format": export_format,
        "version": fetched.version,
        "bundle_sha256": fetched.bundle_sha256,
    }
