"""One task of a registered version as a folder that other tools load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from models.export import export_merged, export_peft
from pipeline.errors import ConfigError
from pipeline.files import publish_dir, remove_tree, temporary_beside, write_bytes, write_json
from pipeline.judge import Judge, load_judge
from pipeline.registry import FetchedVersion

ExportFormat = Literal["peft", "merged"]
WRITERS: dict[str, Callable[..., None]] = {"peft": export_peft, "merged": export_merged}


def export_task(version: FetchedVersion, task: str, export_format: ExportFormat, out_dir: Path) -> dict[str, Any]:
    """Write one task of a version into `out_dir`, whole or not at all; returns what relevance.json says.

    ConfigError: no such task, something is in the place of `out_dir`, or the adapter's method is no such thing for a task.
    """
    if out_dir.exists():
        raise ConfigError(f"{out_dir} exists already; remove it or name another folder with --out")
    judge, bundle = load_judge(version.bundle_dir, version.bundle_sha256)
    names = [known.name for known in judge.tasks]
    if task not in names:
        raise ConfigError(f"task {task!r} is not one of version {version.version}'s, which are {', '.join(names)}")
    index = names.index(task)
    about = {
        "task": judge.tasks[index].model_dump(mode="json"),
        "encode": bundle.description["encode"],
        "calibration": judge.calibration[task].model_dump(mode="json"),
        "base_model": bundle.description["backbone"],
        "model_version": version.version,
        "bundle_sha256": version.bundle_sha256,
        "format": export_format,
    }
    staged = temporary_beside(out_dir)
    try:
        staged.mkdir()
        try:
            WRITERS[export_format](judge.model, index, staged, base_source(judge, bundle.description), judge.pad_id)
        except ValueError as error:
            raise ConfigError(f"version {version.version} cannot be exported as {export_format}: {error}") from error
        write_json(staged / "relevance.json", about)
        for path in sorted(bundle.tokenizer_dir.iterdir()):
            write_bytes(staged / path.name, path.read_bytes())
        publish_dir(staged, out_dir)
    finally:
        remove_tree(staged)
    return about


def base_source(judge: Judge, description: dict[str, Any]) -> str:
    """What `from_pretrained` finds the base model by: its hub id, or the folder it lies in here."""
    source = str(description["backbone"]["source"])
    on_disk = source.startswith(("package:", ".", "/", "~")) or source.endswith(".gguf") or Path(source).exists()
    return str(judge.backbone.folder) if on_disk else source
