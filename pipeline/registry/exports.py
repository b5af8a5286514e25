"""One task of a registered version as a folder that other tools load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from models.serialization.export import ExportTask, export_merged, export_peft
from pipeline.errors import ConfigError
from pipeline.inference.predictor import Judge, load_judge
from pipeline.registry.version_files import FetchedVersion
from pipeline.storage.filesystem import (
    publish_dir,
    read_json,
    remove_tree,
    temporary_beside,
    write_bytes,
    write_json,
)

ExportFormat = Literal["peft", "merged"]

WRITERS: dict[str, Callable[[ExportTask, Path], None]] = {"peft": export_peft, "merged": export_merged}

ABOUT = "relevance.json"


def export_task(version: FetchedVersion, task: str, export_format: ExportFormat, out_dir: Path) -> None:
    """Write one task of a version into `out_dir`, whole or not at all. The same export that is there already
    stays as it is.

    ConfigError: no such task, something else is in the place of `out_dir`, or the adapter's method is no such
    thing for a task.
    """
    names = [known["name"] for known in read_json(version.bundle_dir / "bundle.json")["tasks"]]
    if task not in names:
        raise ConfigError(
            f"task {task!r} is not one of version {version.version}'s, which are {', '.join(names)}"
        )
    if is_export(out_dir, version, task, export_format):
        return
    if out_dir.exists():
        raise ConfigError(f"{out_dir} exists already; remove it or name another folder with --out")
    judge, bundle = load_judge(version.bundle_dir, version.bundle_sha256)
    staged = temporary_beside(out_dir)
    try:
        staged.mkdir()
        try:
            WRITERS[export_format](
                described_task(judge, names.index(task), bundle.description["backbone"]), staged
            )
        except ValueError as error:
            raise ConfigError(
                f"version {version.version} cannot be exported as {export_format}: {error}"
            ) from error
        for path in sorted(bundle.tokenizer_dir.iterdir()):
            write_bytes(staged / path.name, path.read_bytes())
        write_json(staged / ABOUT, about_export(judge, bundle.description, version, task, export_format))
        publish_dir(staged, out_dir)
    finally:
        remove_tree(staged)


def is_export(folder: Path, version: FetchedVersion, task: str, export_format: ExportFormat) -> bool:
    """Whether a folder holds this very export."""
    if not (folder / ABOUT).is_file():
        return False
    about = read_json(folder / ABOUT)
    return bool(
        (about["bundle_sha256"], about["task"]["name"], about["format"])
        == (version.bundle_sha256, task, export_format)
    )


def about_export(
    judge: Judge, description: dict[str, Any], version: FetchedVersion, task: str, export_format: ExportFormat
) -> dict[str, Any]:
    """What relevance.json says: all that turns a pair into this export's inputs, and its logits into a
    decision.
    """
    return {
        "task": next(known.model_dump(mode="json") for known in judge.tasks if known.name == task),
        "encode": description["encode"],
        "encoder_version": description["encoder_version"],
        "calibration": judge.calibration[task].model_dump(mode="json"),
        "base_model": description["backbone"],
        "model_version": version.version,
        "bundle_sha256": version.bundle_sha256,
        "format": export_format,
    }


def described_task(judge: Judge, index: int, backbone: dict[str, Any]) -> ExportTask:
    """A task with what its loader must know. ConfigError: no token can fill the padding and end no row."""
    source = str(backbone["source"])
    on_disk = (
        source.startswith(("package:", ".", "/", "~")) or source.endswith(".gguf") or Path(source).exists()
    )
    tokenizer = judge.encoder.tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad_id is None or (judge.model.pooling == "last" and judge.encoder.suffix[-1:] == [pad_id]):
        raise ConfigError(
            "this backbone's tokenizer has no token that could fill the padding and ends no row, so "
            "exports would pool wrong ones"
        )
    return ExportTask(
        model=judge.model,
        index=index,
        label_names=judge.tasks[index].labels,
        base_source=str(judge.backbone.folder) if on_disk else source,
        base_revision=None if on_disk else backbone["revision"],
        pad_id=pad_id,
    )
