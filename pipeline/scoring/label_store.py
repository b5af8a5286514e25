"""Publishing scores so that a reader never sees a part: files staged and synced first, a manifest put in
place last, if absent. In a folder or a bucket; `root` is either's place.

    <root>/data/<partition>/<attempt>.parquet     labels, written first; nobody reads them yet
    <root>/errors/<partition>/<attempt>.parquet   rows that got no label, where there are any
    <root>/manifests/<partition>.json             names the files; readers start here
    <root>/runs/<run>.json                        the partitions of one run of the job

A partition's id follows from its input and the model: a rerun finds the manifest and does nothing, and a new
model is a new output.
"""

import io
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.files import bytes_sha256
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.names import check_name
from pipeline.scoring.row_errors import ERROR_SCHEMA
from pipeline.storage.filesystem import canonical_json, json_sha256
from pipeline.storage.object_store import Store, open_store

Root = Path | str | Store

KINDS = {"files": "data", "error_files": "errors"}  # what a manifest calls them, and their folder

ORPHAN_S = 24 * 3600.0  # no scorer works on one partition for so long


@dataclass(frozen=True)
class PartitionSource:
    """What a partition's labels follow from: one input file under one model."""

    task: str
    input_path: str
    input_sha256: str
    bundle_sha256: str
    encoder_version: str


def partition_id(
    source: PartitionSource, part: tuple[int, int] | None = None, variants: Sequence[str] = ()
) -> str:
    """The id of the output of one input file, or of a range of its rows (first, one behind the last), under
    one model: the task's name and 24 hex digits. `variants`: ways of scoring that give other labels than the
    plain one, by name.
    """
    made_of = {
        "task": source.task,
        "path": source.input_path,
        "input": source.input_sha256,
        "bundle": source.bundle_sha256,
        "encoder": source.encoder_version,
    }
    digest = json_sha256(
        made_of | ({"rows": list(part)} if part else {}) | ({"ways": sorted(variants)} if variants else {})
    )
    return f"{source.task[:38]}-{digest[:24]}"


def is_published(root: Root, partition: str) -> bool:
    """Whether the partition's manifest is in place."""
    return open_store(root).exists(manifest_key(partition))


def published_partitions(root: Root) -> set[str]:
    """The partitions whose manifests are in place now, by one listing: a store would be asked for thousands
    of them one by one.
    """
    return {
        key.removeprefix("manifests/").removesuffix(".json")
        for key in json_keys(open_store(root), "manifests")
    }


def manifest_key(partition: str) -> str:
    """Where a partition's manifest lies. ConfigError: the partition has no valid name."""
    return f"manifests/{check_name(partition, 'partition')}.json"


def publish_partition(
    root: Root, partition: str, table: pa.Table, facts: dict[str, Any], errors: pa.Table | None = None
) -> bool:
    """Publish the labels of one partition and the rows that got none. True: this call did; False: it was
    published already, and this call left nothing.
    """
    store, key, attempt = open_store(root), manifest_key(partition), uuid.uuid4().hex
    kinds = {"files": table} | ({"error_files": errors} if errors is not None and errors.num_rows else {})
    staged = {kind: f"{KINDS[kind]}/{partition}/{attempt}.parquet" for kind in kinds}
    manifest: dict[str, Any] = {}
    try:
        manifest = {
            **facts,
            "partition": partition,
            "rows": table.num_rows,
            "error_rows": errors.num_rows if errors else 0,
        }
        for kind, rows in kinds.items():
            content = parquet_bytes(rows)
            store.put(staged[kind], content)
            manifest[kind] = [{"path": staged[kind], "sha256": bytes_sha256(content), "rows": rows.num_rows}]
    except BaseException:
        with suppress(OSError, RelevanceError):  # what cannot be removed is swept later
            remove(store, staged.values())
        raise
    try:
        published = store.put_if_absent(key, canonical_json(manifest).encode())
    # a disk says no for good; after any other end the manifest may still appear, and what it names must be
    # there
    except OSError:
        if not (store.exists(key) and attempt in store.get(key).decode()):
            remove(store, staged.values())
        raise
    if not published:
        remove(store, staged.values())
    return published


def parquet_bytes(table: pa.Table) -> bytes:
    """A whole file, in memory: partitions have a bounded number of rows."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def remove(store: Store, keys: Iterable[str]) -> None:
    """Delete keys."""
    for key in keys:
        store.delete(key)


def json_keys(store: Store, folder: str) -> list[str]:
    """Keys of whole json contents in a folder, sorted."""
    return [entry.key for entry in store.list(folder) if entry.key.endswith(".json") and not entry.hidden]


def parse_json(store: Store, key: str) -> dict[str, Any]:
    """DamagedInputError: it is gone or not whole."""
    try:
        return dict(json.loads(store.get(key)))
    except FileNotFoundError as error:
        raise DamagedInputError(f"{store.place}/{key} is gone; score its input again") from error
    except ValueError as error:
        raise DamagedInputError(
            f"{store.place}/{key} is not whole json ({error}); delete it and score again"
        ) from error


def judged_tasks(manifest: Mapping[str, Any]) -> list[str]:
    """The tasks that each row of a partition has a label of: its own, or those that it was judged for
    together.
    """
    return list(manifest.get("tasks") or [manifest["task"]])


def read_manifests(root: Root, bundle_sha256: str | None = None) -> list[dict[str, Any]]:
    """The published manifests of one model or of all, by partition id."""
    store = open_store(root)
    found = [parse_json(store, key) for key in json_keys(store, "manifests")]
    return [one for one in found if bundle_sha256 is None or one["bundle_sha256"] == bundle_sha256]


def read_manifest(root: Root, partition: str) -> dict[str, Any]:
    """One published manifest. DamagedInputError: it is gone or not whole."""
    return parse_json(open_store(root), manifest_key(partition))


def read_published(root: Root, bundle_sha256: str | None = None) -> pa.Table:
    """The score rows that manifests name, of one model or of all. DamagedInputError: a named file is missing
    or altered.
    """
    return read_rows(root, read_manifests(root, bundle_sha256), "files", SCORE_SCHEMA)


def read_errors(root: Root, bundle_sha256: str | None = None) -> pa.Table:
    """The rows that got no label, with their reasons. DamagedInputError: as above."""
    return read_rows(root, read_manifests(root, bundle_sha256), "error_files", ERROR_SCHEMA)


def put_record(root: Root, record: dict[str, Any]) -> str:
    """Keep the record of a run of the job; where."""
    store, key = open_store(root), f"runs/{record['run']}.json"
    store.put_if_absent(key, canonical_json(record).encode())
    return f"{store.place}/{key}"


def newest_records(root: Root) -> Iterator[dict[str, Any]]:
    """The records of runs of the job, the last one first, each read when it is asked for."""
    store = open_store(root)
    for key in reversed(json_keys(store, "runs")):
        yield parse_json(store, key)


def accepted_records(root: Root) -> Iterator[dict[str, Any]]:
    """The same of runs that were accepted: no unit failed, and their scores were spread as they may be."""
    return (record for record in newest_records(root) if record["accepted"])


def last_record(root: Root, all_tasks: bool | None = None) -> dict[str, Any] | None:
    """The record of the last run that was accepted. `all_tasks`: of those that judged rows for all tasks, or
    of those that did not.
    """
    return next(
        (
            one
            for one in accepted_records(root)
            if all_tasks is None or one.get("all_tasks", False) == all_tasks
        ),
        None,
    )


def read_run(root: Root, run: str | None = None) -> pa.Table:
    """The score rows of one run of the job, the last accepted one if none is named: of the inputs and under
    the model that it had, whether it scored them or found them scored. ConfigError: there is no such run.
    DamagedInputError: as above.
    """
    store = open_store(root)
    if run:
        keys = json_keys(store, "runs")
        if f"runs/{run}.json" not in keys:
            there = ", ".join(key.removeprefix("runs/").removesuffix(".json") for key in keys) or "none"
            raise ConfigError(f"{store.place} has no run {run}; there are: {there}")
        record = parse_json(store, f"runs/{run}.json")
    else:
        last = last_record(store)
        if last is None:
            raise ConfigError(f"{store.place} has no accepted run yet")
        record = last
    return read_rows(
        store, [read_manifest(store, partition) for partition in record["partitions"]], "files", SCORE_SCHEMA
    )


def read_rows(root: Root, manifests: list[dict[str, Any]], kind: str, schema: pa.Schema) -> pa.Table:
    """The rows of one kind that manifests name."""
    store, tables = open_store(root), []
    for manifest in manifests:
        for entry in manifest.get(kind, ()):
            content = unaltered(store, entry)
            if content is None:
                remedy = f"delete manifests/{manifest['partition']}.json and score again"
                raise DamagedInputError(
                    f"{store.place}/{entry['path']} is missing or does not match its manifest; {remedy}"
                )
            tables.append(pq.read_table(pa.BufferReader(content)))
    return pa.concat_tables(tables, promote_options="default") if tables else schema.empty_table()


def unaltered(store: Store, file: Mapping[str, Any]) -> bytes | None:
    """The content of a file that a manifest names; None: it is gone or altered."""
    try:
        content = store.get(file["path"])
    except FileNotFoundError:
        return None
    return content if bytes_sha256(content) == file["sha256"] else None


def sweep_orphans(root: Root, older_than_s: float = ORPHAN_S) -> int:
    """Remove files that no manifest names and nobody wrote to for so long: what killed scorers left. Returns
    how many.
    """
    store, before_s = open_store(root), time.time() - older_than_s
    entries = [entry for kind in KINDS.values() for entry in store.list(kind)]
    old = [entry.key for entry in entries if entry.modified_s < before_s]
    # manifests are looked at after the files were found: one that was published in between names what it
    # needs
    published = set(json_keys(store, "manifests")) if old else set()
    attempts: dict[str, set[str]] = {}  # by partition
    for entry in entries:
        attempts.setdefault(entry.key.split("/")[1], set()).add(entry.key.rpartition("/")[2])
    orphans = []
    for key in old:
        partition = key.split("/")[1]
        manifest = f"manifests/{partition}.json"
        # the only attempt at a published partition is the one its manifest names; reading all manifests ever
        # written would take hours
        if manifest not in published or (
            len(attempts[partition]) > 1 and key not in named_files(parse_json(store, manifest))
        ):
            orphans.append(key)
    remove(store, orphans)
    return len(orphans)


def named_files(manifest: dict[str, Any]) -> set[str]:
    """All files that a manifest names."""
    return {entry["path"] for kind in KINDS for entry in manifest.get(kind, ())}
