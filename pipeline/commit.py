"""Publishing scores so that a reader never sees a part: files staged and synced first, a manifest put in place last, if absent.

    <root>/data/<partition>/<attempt>.parquet     labels, written first; nobody reads them yet
    <root>/errors/<partition>/<attempt>.parquet   rows that got no label, where there are any
    <root>/manifests/<partition>.json             names the files; readers start here
    <root>/runs/<run>.json                        the partitions of one run of the job
A partition's id follows from its input and the model, so a rerun finds the manifest and does nothing, and a new model is a new output.
"""

import os
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DamagedInputError
from pipeline.files import canonical_json, check_name, file_sha256, json_sha256, read_json, replacing, safe_join, sync_dir, temporary_beside
from pipeline.row_errors import ERROR_SCHEMA

ORPHAN_S = 24 * 3600.0  # no scorer works on one partition for so long


def partition_id(
    task: str, input_path: str, input_sha256: str, bundle_sha256: str, encoder_version: str, part: tuple[int, int] | None = None
) -> str:  # fmt: skip
    """The id of the output of one input file, or of a range of its rows (first, one behind the last), under one model: the task's name and 24 hex
    digits."""
    made_of = {"task": task, "path": input_path, "input": input_sha256, "bundle": bundle_sha256, "encoder": encoder_version}
    digest = json_sha256(made_of | ({"rows": list(part)} if part else {}))
    return f"{task[:38]}-{digest[:24]}"


def is_published(root: Path, partition: str) -> bool:
    """Whether the partition's manifest is in place."""
    return safe_join(root, "manifests", f"{partition}.json").is_file()


def publish_partition(root: Path, partition: str, table: pa.Table, facts: dict[str, Any], errors: pa.Table | None = None) -> bool:
    """Publish the labels of one partition and the rows that got none. True: this call did; False: it was published already, and this call left
    nothing."""
    manifest_path = safe_join(root, "manifests", f"{check_name(partition, 'partition')}.json")
    attempt = uuid.uuid4().hex
    staged = {"files": (safe_join(root, "data", partition, f"{attempt}.parquet"), table)}
    if errors is not None and errors.num_rows:
        staged["error_files"] = (safe_join(root, "errors", partition, f"{attempt}.parquet"), errors)
    try:
        manifest: dict[str, Any] = {**facts, "partition": partition, "rows": table.num_rows, "error_rows": errors.num_rows if errors else 0}
        for kind, (path, rows) in staged.items():
            with replacing(path) as file:
                pq.write_table(rows, file, compression="zstd", write_page_checksum=True)
            manifest[kind] = [{"path": str(path.relative_to(root.resolve())), "sha256": file_sha256(path), "rows": rows.num_rows}]
        published = put_if_absent(manifest_path, canonical_json(manifest).encode())
    except BaseException:
        # whatever stopped us, only our own attempt is removed, and only if no manifest names it
        if not (manifest_path.is_file() and attempt in manifest_path.read_text()):
            for path, _ in staged.values():
                path.unlink(missing_ok=True)
        raise
    if not published:
        for path, _ in staged.values():
            path.unlink()
    return published


def put_if_absent(path: Path, content: bytes) -> bool:
    """Create `path` whole with `content`; False and nothing changed if it exists. Of several at once exactly one gets True."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_dir(path.parent)
    return True


def read_manifests(root: Path) -> list[dict[str, Any]]:
    """All published manifests, by partition id."""
    return [read_json(path) for path in sorted((root / "manifests").glob("*.json")) if not path.name.startswith(".")]


def read_manifest(root: Path, partition: str) -> dict[str, Any]:
    """One published manifest. DamagedInputError: it is gone or not whole."""
    path = safe_join(root, "manifests", f"{partition}.json")
    if not path.is_file():
        raise DamagedInputError(f"{path} is gone; score its input again")
    return dict(read_json(path))


def read_published(root: Path, bundle_sha256: str | None = None) -> pa.Table:
    """The score rows that manifests name, of one model or of all. DamagedInputError: a named file is missing or altered."""
    wanted = [one for one in read_manifests(root) if bundle_sha256 is None or one["bundle_sha256"] == bundle_sha256]
    return read_rows(root, wanted, "files", SCORE_SCHEMA)


def read_records(root: Path) -> list[dict[str, Any]]:
    """The records of all runs of the job, the last one last."""
    return [read_json(path) for path in sorted((root / "runs").glob("*.json")) if not path.name.startswith(".")]


def last_record(root: Path) -> dict[str, Any] | None:
    """The record of the last run that was accepted: no unit failed, and its scores were spread as they may be."""
    return next((record for record in reversed(read_records(root)) if record["accepted"]), None)


def read_run(root: Path, run: str | None = None) -> pa.Table:
    """The score rows of one run of the job, the last accepted one if none is named: of the inputs and under the model that it had, whether it scored
    them or found them scored. ConfigError: there is no such run. DamagedInputError: as above."""
    records = {record["run"]: record for record in read_records(root)}
    record = records.get(run) if run else last_record(root)
    if record is None:
        raise ConfigError(f"{root} has no run {run}; there are: {', '.join(records) or 'none'}" if run else f"{root} has no accepted run yet")
    return read_rows(root, [read_manifest(root, partition) for partition in record["partitions"]], "files", SCORE_SCHEMA)


def read_errors(root: Path, bundle_sha256: str | None = None) -> pa.Table:
    """The rows that got no label, with their reasons. DamagedInputError: as above."""
    wanted = [one for one in read_manifests(root) if bundle_sha256 is None or one["bundle_sha256"] == bundle_sha256]
    return read_rows(root, wanted, "error_files", ERROR_SCHEMA)


def read_rows(root: Path, manifests: list[dict[str, Any]], kind: str, schema: pa.Schema) -> pa.Table:
    """The rows of one kind that manifests name."""
    tables = []
    for manifest in manifests:
        for entry in manifest.get(kind, ()):
            path = safe_join(root, entry["path"])
            if not path.is_file() or file_sha256(path) != entry["sha256"]:
                remedy = f"delete manifests/{manifest['partition']}.json and score again"
                raise DamagedInputError(f"{path} is missing or does not match its manifest; {remedy}")
            tables.append(pq.read_table(path, partitioning=None))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def sweep_orphans(root: Path, older_than_s: float = ORPHAN_S) -> int:
    """Remove files that no manifest names and nobody wrote to for so long: what killed scorers left. Returns how many."""
    old = [path for kind in ("data", "errors") for path in (root / kind).glob("*/*") if time.time() - path.stat().st_mtime > older_than_s]
    # manifests are read after the files were found: one that was published in between names what it needs
    manifests = read_manifests(root) if old else []
    named = {root / entry["path"] for one in manifests for kind in ("files", "error_files") for entry in one.get(kind, ())}
    orphans = [path for path in old if path not in named]
    for path in orphans:
        path.unlink(missing_ok=True)
    return len(orphans)


SCORE_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("task", pa.string(), False),
        pa.field("probability", pa.float64(), False),  # calibrated, that the label counts as relevant
        pa.field("label", pa.int32(), False),  # the most probable one
        pa.field("label_name", pa.string(), False),
        pa.field("expected_grade", pa.float64(), False),  # mean label index
        pa.field("decision", pa.string(), False),  # relevant | irrelevant | abstain
        pa.field("model_version", pa.string(), False),
        pa.field("bundle_sha256", pa.string(), False),
    ]
)
