"""Export of one task of a registered version to a folder that other tools load."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.files import publish_dir, remove_tree, sync_tree, temporary_path
from models.serialization.export import ExportFormat, ExportTask, export_merged, export_peft
from models.serialization.export_check import (
    ExportSample,
    check_export,
    check_peft_installed,
    sample_export,
)
from pipeline.config.run import is_path
from pipeline.encoding.batches import collate
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.predictor import Predictor, load_predictor
from pipeline.registry.version_files import VersionFiles
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.filesystem import read_json, write_bytes, write_json

WRITERS: dict[str, Callable[[ExportTask, Path], None]] = {"peft": export_peft, "merged": export_merged}

METADATA_FILE = "relevance.json"

# pairs of different lengths whose logits an export must reproduce
SAMPLE_PAIRS = (
    ("red running shoes", "Running shoes, red, size 9"),
    ("cheap flight to oslo", "Fly to Oslo from 39 euros: compare all airlines and book in two minutes"),
    ("tv", "Flights"),
    ("how long do i boil an egg", "Egg cooker for seven eggs with timer"),
)


def export_task(version: VersionFiles, task: str, export_format: ExportFormat, out_dir: Path) -> None:
    """Write one task of a version into `out_dir`, completely or not at all.

    An equal export that exists already is kept. An export is published only after it was loaded back and
    gave the model's logits. The model is released before, so memory holds one model at a time.

    Raises:
        ConfigError: The task is unknown, `out_dir` holds something else, the adapter method cannot be
            exported in this format, or the export does not reproduce the model.
    """
    names = [task_fields["name"] for task_fields in read_json(version.bundle_dir / "bundle.json")["tasks"]]
    if task not in names:
        raise ConfigError(f"version {version.version} has no task {task!r}; its tasks: {', '.join(names)}")
    if _is_same_export(out_dir, version, task, export_format):
        return
    if out_dir.exists():
        raise ConfigError(f"{out_dir} exists already; remove it or name another folder with --out")
    staged = temporary_path(out_dir)
    try:
        staged.mkdir()
        if export_format == "peft":
            check_peft_installed()
        sample = _write_export(version, task, export_format, staged)
        gc.collect()  # modules of a model refer to each other
        check_export(staged, export_format, sample)
        sync_tree(staged)
        publish_dir(staged, out_dir)
    except ValueError as error:
        raise ConfigError(
            f"version {version.version} cannot be exported as {export_format}: {error}"
        ) from error
    finally:
        remove_tree(staged)


def _write_export(
    version: VersionFiles, task: str, export_format: ExportFormat, folder: Path
) -> ExportSample:
    """Write the files of an export; return rows with the logits that it must give.

    Raises:
        ValueError: The adapter method cannot be exported in this format.
    """
    predictor, bundle = load_predictor(version.bundle_dir, version.bundle_sha256)
    index = [known.name for known in predictor.tasks].index(task)
    export = _describe_task(predictor, index, bundle.description["backbone"])
    WRITERS[export_format](export, folder)
    for path in sorted(bundle.tokenizer_dir.iterdir()):
        write_bytes(folder / path.name, path.read_bytes())
    metadata = _export_metadata(predictor, bundle.description, version, task)
    write_json(folder / METADATA_FILE, metadata | {"format": export_format})
    batch = collate(
        predictor.encode({task: _sample_rows()}),
        np.arange(len(SAMPLE_PAIRS)),
        len(predictor.tasks),
        export.pad_id,
    )
    return sample_export(export, export_format, batch.input_ids_BS, batch.mask_BS)


def _sample_rows() -> pa.Table:
    """Return SAMPLE_PAIRS as rows."""
    rows = [
        {"row_id": str(number), "query": query, "ad_title": title, "market": "unknown"}
        for number, (query, title) in enumerate(SAMPLE_PAIRS)
    ]
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _is_same_export(folder: Path, version: VersionFiles, task: str, export_format: ExportFormat) -> bool:
    """Return True if a folder holds this export."""
    if not (folder / METADATA_FILE).is_file():
        return False
    try:
        metadata = read_json(folder / METADATA_FILE)
        existing = (metadata["bundle_sha256"], metadata["task"]["name"], metadata["format"])
    except (DamagedInputError, KeyError, TypeError):  # a file of something else
        return False
    return bool(existing == (version.bundle_sha256, task, export_format))


def _export_metadata(
    predictor: Predictor, description: Mapping[str, Any], version: VersionFiles, task: str
) -> dict[str, Any]:
    """Return the settings that map a pair to the model's input and logits to a decision, as JSON."""
    return {
        "task": next(known.model_dump(mode="json") for known in predictor.tasks if known.name == task),
        "encode": description["encode"],
        "encoder_version": description["encoder_version"],
        "calibration": predictor.calibration[task].model_dump(mode="json"),
        "base_model": description["backbone"],
        "model_version": version.version,
        "bundle_sha256": version.bundle_sha256,
    }


def _describe_task(predictor: Predictor, index: int, backbone: Mapping[str, Any]) -> ExportTask:
    """Return a task with the values that its loader needs.

    Raises:
        ConfigError: The tokenizer has no padding token that differs from the last token of a row.
    """
    source = str(backbone["source"])
    is_local = source.startswith("package:") or is_path(source)
    tokenizer = predictor.encoder.tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad_id is None or (predictor.model.pooling == "last" and predictor.encoder.suffix[-1:] == [pad_id]):
        raise ConfigError(
            "the backbone's tokenizer has no padding token that differs from the last token of a row; an "
            "export would pool wrong tokens, choose another backbone"
        )
    return ExportTask(
        model=predictor.model,
        index=index,
        label_names=predictor.tasks[index].labels,
        base_source=str(predictor.backbone.folder) if is_local else source,
        base_revision=None if is_local else backbone["revision"],
        pad_id=pad_id,
    )
