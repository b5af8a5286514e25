"""Published labels, and the rows without one, in a store of work units (pipeline/publishing/unit_store.py).

    <root>/data/<unit>/<attempt>.parquet     labels
    <root>/errors/<unit>/<attempt>.parquet   rows without a label, where there are any
    <root>/manifests/<unit>.json             names the files; readers start here
    <root>/runs/<run>.json                   scoring records (pipeline/scoring/scoring_record.py)

A unit's id follows from its input and the model. A rerun finds the manifest and does nothing; a new model
has new ids.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.publishing import unit_store
from pipeline.publishing.unit_store import (
    ORPHAN_S,
    PublishedFile,
    Root,
    build_unit_id,
    open_table,
    publish_tables,
)
from pipeline.runtime.run_log import utc_text
from pipeline.scoring.published_labels import LabelSelection, read_table
from pipeline.scoring.row_errors import ERROR_SCHEMA
from pipeline.scoring.unit_manifest import UnitManifest
from pipeline.storage.object_store import Store, open_store

LABELS, ERRORS = "data", "errors"  # folders of the two kinds of files


@dataclass(frozen=True)
class UnitSource:
    """Input file and model that a unit's labels follow from."""

    task: str
    input_path: str
    input_sha256: str
    bundle_sha256: str
    encoder_version: str


def compute_unit_id(
    source: UnitSource, part: tuple[int, int] | None = None, variants: Iterable[str] = ()
) -> str:
    """Return the id of a work unit: the task's name and 24 hex digits.

    Args:
        source: The input file and the model.
        part: (first row, one past the last); None: all rows of the file.
        variants: Names of scoring variants that give other labels than the plain one.
    """
    hashed: dict[str, Any] = {
        "task": source.task,
        "path": source.input_path,
        "input": source.input_sha256,
        "bundle": source.bundle_sha256,
        "encoder": source.encoder_version,
    }
    if part:
        hashed["rows"] = list(part)
    if names := sorted(variants):
        hashed["ways"] = names
    return build_unit_id(source.task, hashed)


def publish_unit(
    root: Root, manifest: UnitManifest, labels: pa.Table, errors: pa.Table | None = None
) -> bool:
    """Publish the labels of a unit, and its rows without a label.

    Args:
        root: The location of all scores.
        manifest: The unit's manifest without counts and files.
        labels: Rows in SCORE_SCHEMA.
        errors: Rows in ERROR_SCHEMA.

    Returns:
        True if this call published the unit; False if it was published already.
    """
    tables = {LABELS: labels}
    if errors is not None and errors.num_rows:
        tables[ERRORS] = errors

    def build_manifest(files: Mapping[str, PublishedFile]) -> dict[str, Any]:
        complete = replace(
            manifest,
            num_labels=labels.num_rows,
            num_errors=errors.num_rows if errors is not None else 0,
            published_at=utc_text(time.time()),
            label_files=(files[LABELS],),
            error_files=(files[ERRORS],) if ERRORS in files else (),
        )
        return complete.to_json()

    return publish_tables(root, manifest.unit_id, tables, build_manifest)


def read_manifests(root: Root, bundle_sha256: str | None = None) -> list[UnitManifest]:
    """Return the published manifests of one model, or of all, sorted by unit id."""
    manifests = unit_store.read_manifests(root, UnitManifest.from_json)
    if bundle_sha256 is None:
        return manifests
    return [manifest for manifest in manifests if manifest.bundle_sha256 == bundle_sha256]


def read_manifest(root: Root, unit_id: str) -> UnitManifest:
    """Return the manifest of a published unit.

    Raises:
        DamagedInputError: The manifest is missing or damaged.
    """
    return unit_store.read_manifest(root, UnitManifest.from_json, unit_id)


def sweep_orphans(root: Root, older_than_s: float = ORPHAN_S) -> int:
    """Remove files of killed scorers that no manifest names, and return their number."""
    return unit_store.sweep_orphans(root, (LABELS, ERRORS), older_than_s)


def read_published(root: Root, bundle_sha256: str | None = None) -> pa.Table:
    """Return all published labels (SCORE_SCHEMA) of one model, or of all, in the order of publication.

    Of labels of one row_id, task and model the one that was published first is kept.

    Raises:
        DamagedInputError: A file that a manifest names is missing or altered.
    """
    return read_table(root, LabelSelection(bundle_sha256=bundle_sha256))


def read_errors(root: Root, bundle_sha256: str | None = None) -> pa.Table:
    """Return the rows without a label (ERROR_SCHEMA) of one model, or of all.

    Raises:
        DamagedInputError: A file that a manifest names is missing or altered.
    """
    store = open_store(root)
    return read_error_rows(store, read_manifests(store, bundle_sha256))


def read_error_rows(store: Store, manifests: Iterable[UnitManifest]) -> pa.Table:
    """Return the rows without a label (ERROR_SCHEMA) that manifests name.

    Raises:
        DamagedInputError: A named file is missing or altered.
    """
    tables = [
        open_table(store, manifest.unit_id, file).read()
        for manifest in manifests
        for file in manifest.error_files
    ]
    return pa.concat_tables([ERROR_SCHEMA.empty_table(), *tables], promote_options="default")
