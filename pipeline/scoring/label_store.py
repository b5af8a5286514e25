"""Store of published labels in a folder or a bucket.

A reader never sees part of a work unit: files are staged and synced first, and the manifest is put in place
last, if absent.

    <root>/data/<unit>/<attempt>.parquet     labels; invisible until a manifest names them
    <root>/errors/<unit>/<attempt>.parquet   rows without a label, where there are any
    <root>/manifests/<unit>.json             names the files; readers start here
    <root>/runs/<run>.json                   scoring records (pipeline/scoring/scoring_record.py)

A unit's id follows from its input and the model. A rerun finds the manifest and does nothing; a new model
has new ids.
"""

import io
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.files import bytes_sha256
from pipeline.errors import WRONG_FIELDS, DamagedInputError, RelevanceError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.names import check_name
from pipeline.runtime.run_log import utc_text
from pipeline.scoring.row_errors import ERROR_SCHEMA
from pipeline.scoring.unit_manifest import PublishedFile, UnitManifest
from pipeline.storage.filesystem import canonical_json, json_sha256, parse_json_object
from pipeline.storage.object_store import Store, open_store

Root = Path | str | Store

T = TypeVar("T")

LABELS, ERRORS = "data", "errors"  # folders of the two kinds of files

CONCURRENT_MANIFESTS = 8  # a bucket answers several requests as fast as one

ORPHAN_S = 24 * 3600.0  # no scorer works on one unit for so long


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
    return f"{source.task[:38]}-{json_sha256(hashed)[:24]}"


def is_published(root: Root, unit_id: str) -> bool:
    """Return True if a unit's manifest is in place."""
    return open_store(root).exists(manifest_key(unit_id))


def list_published_units(root: Root) -> set[str]:
    """Return the ids of all published units, by one listing: thousands of single requests would be slow."""
    keys = list_json_keys(open_store(root), "manifests")
    return {key.removeprefix("manifests/").removesuffix(".json") for key in keys}


def manifest_key(unit_id: str) -> str:
    """Return the key of a unit's manifest.

    Raises:
        ConfigError: The id is not a valid name.
    """
    return f"manifests/{check_name(unit_id, 'unit')}.json"


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
        True if this call published the unit; False if it was published already. In that case this call
        leaves nothing behind.
    """
    store, attempt = open_store(root), uuid.uuid4().hex
    manifest_at = manifest_key(manifest.unit_id)
    tables = {LABELS: labels}
    if errors is not None and errors.num_rows:
        tables[ERRORS] = errors
    staged = {folder: f"{folder}/{manifest.unit_id}/{attempt}.parquet" for folder in tables}
    try:
        files = {folder: (_put_table(store, staged[folder], table),) for folder, table in tables.items()}
    except BaseException:
        with suppress(OSError, RelevanceError):  # sweep_orphans removes the rest later
            _delete(store, staged.values())
        raise
    complete = replace(
        manifest,
        num_labels=labels.num_rows,
        num_errors=errors.num_rows if errors is not None else 0,
        published_at=utc_text(time.time()),
        label_files=files[LABELS],
        error_files=files.get(ERRORS, ()),
    )
    try:
        published = store.put_if_absent(manifest_at, canonical_json(complete.to_json()).encode())
    except OSError:
        _delete_unless_published(store, manifest_at, attempt, staged.values())
        raise
    if not published:
        _delete(store, staged.values())
    return published


def read_manifests(root: Root, bundle_sha256: str | None = None) -> list[UnitManifest]:
    """Return the published manifests of one model, or of all, sorted by unit id."""
    store = open_store(root)
    manifests = _parse_manifests(store, list_json_keys(store, "manifests"))
    if bundle_sha256 is None:
        return manifests
    return [manifest for manifest in manifests if manifest.bundle_sha256 == bundle_sha256]


def read_manifest(root: Root, unit_id: str) -> UnitManifest:
    """Return the manifest of a published unit.

    Raises:
        DamagedInputError: The manifest is missing or damaged.
    """
    return _parse_manifest(open_store(root), manifest_key(unit_id))


def read_unit_manifests(root: Root, unit_ids: Iterable[str]) -> list[UnitManifest]:
    """Return the manifests of published units, in the order of their ids.

    Raises:
        DamagedInputError: A manifest is missing or damaged.
    """
    return _parse_manifests(open_store(root), map(manifest_key, unit_ids))


def read_published(root: Root, bundle_sha256: str | None = None) -> pa.Table:
    """Return all published labels (SCORE_SCHEMA) of one model, or of all.

    Raises:
        DamagedInputError: A file that a manifest names is missing or altered.
    """
    store = open_store(root)
    return read_labels(store, read_manifests(store, bundle_sha256))


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
    files = [(manifest.unit_id, file) for manifest in manifests for file in manifest.error_files]
    return pa.concat_tables(_read_files(store, files, ERROR_SCHEMA), promote_options="default")


def read_labels(store: Store, manifests: Iterable[UnitManifest]) -> pa.Table:
    """Return the labels (SCORE_SCHEMA) that manifests name, one of each row_id, task and model.

    Of several the one that was published first is kept.

    Raises:
        DamagedInputError: A named file is missing or altered.
    """
    files = [(manifest, file) for manifest in manifests for file in manifest.label_files]
    tables = _read_files(store, [(manifest.unit_id, file) for manifest, file in files], SCORE_SCHEMA)
    published = [(manifest.published_at, manifest.unit_id) for manifest, _ in files]
    rank = np.zeros(len(tables), int)
    rank[sorted(range(len(files)), key=published.__getitem__)] = range(len(files))
    rank_N = np.repeat(rank, [table.num_rows for table in tables])
    return _keep_first_labels(pa.concat_tables(tables, promote_options="default"), rank_N)


def read_unaltered(store: Store, file: PublishedFile) -> bytes | None:
    """Return the content of a published file; None if it is missing or altered."""
    try:
        content = store.get(file.path)
    except FileNotFoundError:
        return None
    return content if bytes_sha256(content) == file.sha256 else None


def list_json_keys(store: Store, folder: str) -> list[str]:
    """Return the keys of complete JSON files in a folder, sorted."""
    return [entry.key for entry in store.list(folder) if entry.key.endswith(".json") and not entry.is_hidden]


def read_stored_json(store: Store, key: str) -> dict[str, Any]:
    """Return a JSON object of the store.

    Raises:
        DamagedInputError: It is missing, or is not a JSON object.
    """
    try:
        return parse_json_object(store.get(key))
    except FileNotFoundError as error:
        raise DamagedInputError(f"file is missing: {store.location}/{key}; score its input again") from error
    except ValueError as error:
        raise DamagedInputError(
            f"file is not valid JSON: {store.location}/{key} ({error}); delete it and score again"
        ) from error


def read_stored(store: Store, key: str, parse: Callable[[dict[str, Any]], T], kind: str, remedy: str) -> T:
    """Return a JSON object of the store as `parse` understands it.

    Args:
        store: The store.
        key: Key of the object.
        parse: Raises one of WRONG_FIELDS for an object of another kind.
        kind: What the object should be, for the error message.
        remedy: What to do if it is not that.

    Raises:
        DamagedInputError: It is missing, or is not of this kind.
    """
    fields = read_stored_json(store, key)
    try:
        return parse(fields)
    except WRONG_FIELDS as error:
        raise DamagedInputError(
            f"file is not a {kind}: {store.location}/{key} ({error!r}); {remedy}"
        ) from error


def sweep_orphans(root: Root, older_than_s: float = ORPHAN_S) -> int:
    """Remove files of killed scorers: those that no manifest names and that are old enough.

    Returns:
        Number of files removed.
    """
    store, cutoff_s = open_store(root), time.time() - older_than_s
    entries = [entry for folder in (LABELS, ERRORS) for entry in store.list(folder)]
    old = [entry.key for entry in entries if entry.modified_s < cutoff_s]
    # List manifests after files, so that a unit published in between keeps its files.
    published = set(list_json_keys(store, "manifests")) if old else set()
    attempts: dict[str, set[str]] = {}  # by unit
    for entry in entries:
        attempts.setdefault(_unit_of(entry.key), set()).add(entry.key.rpartition("/")[2])
    orphans = []
    for key in old:
        manifest_at = f"manifests/{_unit_of(key)}.json"
        if manifest_at in published:
            # A published unit's only attempt is its manifest's; reading all manifests would take hours.
            if len(attempts[_unit_of(key)]) == 1:
                continue
            manifest = _parse_manifest(store, manifest_at)
            if key in {file.path for file in (*manifest.label_files, *manifest.error_files)}:
                continue
        orphans.append(key)
    _delete(store, orphans)
    return len(orphans)


def _unit_of(key: str) -> str:
    """Return the unit id in the key of a label or error file."""
    return key.split("/")[1]


def _parse_manifests(store: Store, keys: Iterable[str]) -> list[UnitManifest]:
    with ThreadPoolExecutor(CONCURRENT_MANIFESTS) as pool:
        return list(pool.map(lambda key: _parse_manifest(store, key), keys))


def _parse_manifest(store: Store, key: str) -> UnitManifest:
    return read_stored(store, key, UnitManifest.from_json, "manifest", "delete it and score again")


def _put_table(store: Store, key: str, table: pa.Table) -> PublishedFile:
    """Write a table, whole in memory: units have a bounded number of rows."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    content = file.getvalue()
    store.put(key, content)
    return PublishedFile(key, bytes_sha256(content), table.num_rows)


def _delete(store: Store, keys: Iterable[str]) -> None:
    for key in keys:
        store.delete(key)


def _delete_unless_published(store: Store, manifest_at: str, attempt: str, keys: Iterable[str]) -> None:
    """Delete the files of an attempt whose manifest a disk refused, unless the manifest is in place.

    A disk's refusal is final. After any other error the manifest may still appear and need its files.
    """
    if not (store.exists(manifest_at) and attempt in store.get(manifest_at).decode()):
        _delete(store, keys)


def _keep_first_labels(labels: pa.Table, rank_N: np.ndarray) -> pa.Table:
    """Drop labels of a row_id, task and model of which there is another label with a lower rank."""
    key_N = np.zeros(labels.num_rows, np.int64)
    for name in ("task", "bundle_sha256", "row_id"):
        encoded = pc.dictionary_encode(labels[name])
        code_N = np.concatenate(
            [np.zeros(0, np.int32), *(chunk.indices.to_numpy() for chunk in encoded.chunks)]
        )
        key_N = key_N * (int(code_N.max(initial=0)) + 1) + code_N
    order_N = np.lexsort((rank_N, key_N))
    is_first_N = np.ones(labels.num_rows, bool)
    is_first_N[order_N[1:]] = key_N[order_N[1:]] != key_N[order_N[:-1]]
    return labels if is_first_N.all() else labels.filter(pa.array(is_first_N))


def _read_files(
    store: Store, files: Iterable[tuple[str, PublishedFile]], schema: pa.Schema
) -> list[pa.Table]:
    """Read files of units, given as (unit id, file); an empty table if there is none."""
    tables = []
    for unit_id, file in files:
        content = read_unaltered(store, file)
        if content is None:
            raise DamagedInputError(
                f"{store.location}/{file.path} is missing or does not match its manifest; "
                f"delete manifests/{unit_id}.json and score again"
            )
        tables.append(pq.read_table(pa.BufferReader(content)))
    return tables or [schema.empty_table()]
