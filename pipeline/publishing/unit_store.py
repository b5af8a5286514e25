"""Store of published work units in a folder or a bucket.

A unit is one or more tables. A reader never sees part of it: files are staged and synced first, and the
manifest is put in place last, if absent.

    <root>/<folder>/<unit>/<attempt>.parquet   a table; invisible until a manifest names it
    <root>/manifests/<unit>.json               names the files; readers start here

A manifest is a JSON object. Its lists of `PublishedFile` name the unit's files; the publisher chooses the
other fields.
"""

import io
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from models.files import bytes_sha256
from pipeline.errors import WRONG_FIELDS, DamagedInputError, RelevanceError
from pipeline.names import check_name
from pipeline.storage.filesystem import canonical_json, json_sha256, parse_json_object
from pipeline.storage.object_store import Store, StoreEntry, open_store

Root = Path | str | Store

T = TypeVar("T")

CONCURRENT_MANIFESTS = 32  # a bucket answers them as fast as one

ORPHAN_S = 24 * 3600.0  # no process works on one unit for so long

REWRITE = "delete it and run the command that wrote it again"


@dataclass(frozen=True)
class PublishedFile:
    """Parquet file that a manifest names."""

    path: str  # key below the location of the store
    sha256: str
    rows: int


def build_unit_id(name: str, identity: Mapping[str, Any]) -> str:
    """Return the id of a work unit: a readable name, cut to 38 characters, and 24 hex digits.

    Args:
        name: A valid name, such as the task's.
        identity: JSON values that the unit's tables follow from.
    """
    return f"{name[:38]}-{json_sha256(identity)[:24]}"


def split_rows(num_rows: int, unit_rows: int) -> list[tuple[int, int] | None]:
    """Return ranges (first row, one past the last) of a file's rows; [None] for a file that is one unit."""
    if num_rows <= unit_rows:
        return [None]
    return [(first, min(first + unit_rows, num_rows)) for first in range(0, num_rows, unit_rows)]


def manifest_key(unit_id: str) -> str:
    """Return the key of a unit's manifest.

    Raises:
        ConfigError: The id is not a valid name.
    """
    return f"manifests/{check_name(unit_id, 'unit')}.json"


def is_published(root: Root, unit_id: str) -> bool:
    """Return True if a unit's manifest is in place."""
    return open_store(root).exists(manifest_key(unit_id))


def list_published_units(root: Root) -> set[str]:
    """Return the ids of all published units, by one listing: thousands of single requests would be slow."""
    return set(list_manifests(open_store(root)))


def list_manifests(store: Store) -> dict[str, StoreEntry]:
    """Return the manifests in a store by unit id, sorted."""
    return {
        entry.key.removeprefix("manifests/").removesuffix(".json"): entry
        for entry in store.list("manifests")
        if _is_json(entry)
    }


def publish_tables(
    root: Root,
    unit_id: str,
    tables: Mapping[str, pa.Table],
    build_manifest: Callable[[Mapping[str, PublishedFile]], dict[str, Any]],
) -> bool:
    """Publish the tables of a unit.

    Args:
        root: The location of the store.
        unit_id: Id of the unit.
        tables: Tables by folder, at least one.
        build_manifest: Returns the manifest that names these files, by folder. It is called when they are
            staged.

    Returns:
        True if this call published the unit; False if it was published already. In that case this call
        leaves nothing behind.
    """
    store, attempt = open_store(root), uuid.uuid4().hex
    manifest_at = manifest_key(unit_id)
    staged = {folder: f"{folder}/{unit_id}/{attempt}.parquet" for folder in tables}
    try:
        files = {folder: _put_table(store, staged[folder], table) for folder, table in tables.items()}
        content = canonical_json(build_manifest(files)).encode()
    except BaseException:
        with suppress(OSError, RelevanceError):  # sweep_orphans removes the rest later
            _delete(store, staged.values())
        raise
    try:
        published = store.put_if_absent(manifest_at, content)
    except OSError:
        with suppress(OSError, RelevanceError):
            _delete_unless_published(store, manifest_at, attempt, staged.values())
        raise
    if not published:
        _delete(store, staged.values())
    return published


def read_manifests(
    root: Root, parse: Callable[[dict[str, Any]], T], unit_ids: Iterable[str] | None = None
) -> list[T]:
    """Return the manifests of published units, in the order of `unit_ids`, or sorted by id.

    Args:
        root: The location of the store.
        parse: Raises one of WRONG_FIELDS for a manifest of another kind.
        unit_ids: The units; None: all, sorted.

    Raises:
        DamagedInputError: A manifest is missing or damaged.
    """
    store = open_store(root)
    keys = list_json_keys(store, "manifests") if unit_ids is None else map(manifest_key, unit_ids)
    with ThreadPoolExecutor(CONCURRENT_MANIFESTS) as pool:
        return list(pool.map(lambda key: _read_manifest(store, key, parse), keys))


def read_manifest(root: Root, parse: Callable[[dict[str, Any]], T], unit_id: str) -> T:
    """Return the manifest of a published unit; see `read_manifests`."""
    return _read_manifest(open_store(root), manifest_key(unit_id), parse)


def read_unaltered(store: Store, file: PublishedFile) -> bytes | None:
    """Return the content of a published file; None if it is missing or altered."""
    try:
        content = store.get(file.path)
    except FileNotFoundError:
        return None
    return content if bytes_sha256(content) == file.sha256 else None


def open_table(
    store: Store, unit_id: str, file: PublishedFile, dictionary_columns: Sequence[str] = ()
) -> pq.ParquetFile:
    """Open a published file of a unit, whose content is in memory: units have a bounded number of rows.

    Args:
        store: The store.
        unit_id: Id of the unit.
        file: The file, as the unit's manifest names it.
        dictionary_columns: Columns of few texts, to be read as numbers of a dictionary.

    Raises:
        DamagedInputError: It is missing or altered.
    """
    content = read_unaltered(store, file)
    if content is None:
        raise DamagedInputError(
            f"{store.location}/{file.path} is missing or does not match its manifest; "
            f"delete {manifest_key(unit_id)} and run the command that wrote it again"
        )
    metadata = pq.read_metadata(pa.BufferReader(content))
    present = set(metadata.schema.to_arrow_schema().names)  # pyarrow raises KeyError for others
    dictionaries = [name for name in dictionary_columns if name in present]
    return pq.ParquetFile(pa.BufferReader(content), metadata=metadata, read_dictionary=dictionaries)


def list_json_keys(store: Store, folder: str) -> list[str]:
    """Return the keys of complete JSON files in a folder, sorted."""
    return [entry.key for entry in store.list(folder) if _is_json(entry)]


def _is_json(entry: StoreEntry) -> bool:
    return entry.key.endswith(".json") and not entry.is_hidden


def read_stored(store: Store, key: str, parse: Callable[[dict[str, Any]], T], kind: str) -> T:
    """Return a JSON object of the store as `parse` understands it.

    Args:
        store: The store.
        key: Key of the object.
        parse: Raises one of WRONG_FIELDS for an object of another kind.
        kind: What the object should be, for the error message.

    Raises:
        DamagedInputError: It is missing, or is not of this kind.
    """
    fields = _read_stored_json(store, key)
    try:
        return parse(fields)
    except WRONG_FIELDS as error:
        raise DamagedInputError(
            f"file is not a {kind}: {store.location}/{key} ({error!r}); {REWRITE}"
        ) from error


def sweep_orphans(root: Root, folders: Iterable[str], older_than_s: float = ORPHAN_S) -> int:
    """Remove files of killed processes: those that no manifest names and that are old enough.

    Args:
        root: The location of the store.
        folders: Folders of the units' tables.
        older_than_s: Age from which on files are removed.

    Returns:
        Number of files removed.
    """
    store, cutoff_s = open_store(root), time.time() - older_than_s
    entries = [entry for folder in folders for entry in store.list(folder)]
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
            if key in _read_manifest(store, manifest_at, _named_files):
                continue
        orphans.append(key)
    _delete(store, orphans)
    return len(orphans)


def _read_manifest(store: Store, key: str, parse: Callable[[dict[str, Any]], T]) -> T:
    return read_stored(store, key, parse, "manifest")


def _unit_of(key: str) -> str:
    """Return the unit id in the key of a file."""
    return key.split("/")[1]


def _named_files(manifest: Mapping[str, Any]) -> set[str]:
    """Return the keys of the files that a manifest names; KeyError if it names none."""
    lists = [value for value in manifest.values() if isinstance(value, list)]
    keys = {file["path"] for files in lists for file in files if isinstance(file, dict)}
    if not keys:
        raise KeyError("files")
    return keys


def _read_stored_json(store: Store, key: str) -> dict[str, Any]:
    try:
        return parse_json_object(store.get(key))
    except FileNotFoundError as error:
        raise DamagedInputError(
            f"file is missing: {store.location}/{key}; run the command that wrote it again"
        ) from error
    except ValueError as error:
        raise DamagedInputError(
            f"file is not valid JSON: {store.location}/{key} ({error}); {REWRITE}"
        ) from error


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
