"""Publishing scores so that a reader never sees a part: files staged and synced first, a manifest put in place last, if absent.

    <root>/data/<partition>/<attempt>.parquet   written first; nobody reads it yet
    <root>/manifests/<partition>.json           names the files; readers start here
A partition's id follows from its input and the model, so a rerun finds the manifest and does nothing, and a new model is a new output.
"""

import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedInputError
from pipeline.files import canonical_json, check_name, file_sha256, json_sha256, read_json, replacing, safe_join, sync_dir, temporary_beside


def partition_id(task: str, input_path: str, input_sha256: str, bundle_sha256: str, encoder_version: str) -> str:
    """The id of the output of one input file under one model: the task's name and 24 hex digits."""
    digest = json_sha256({"task": task, "path": input_path, "input": input_sha256, "bundle": bundle_sha256, "encoder": encoder_version})
    return f"{task[:38]}-{digest[:24]}"


def is_published(root: Path, partition: str) -> bool:
    """Whether the partition's manifest is in place."""
    return safe_join(root, "manifests", f"{partition}.json").is_file()


def publish_partition(root: Path, partition: str, table: pa.Table, facts: dict[str, Any]) -> bool:
    """Publish the rows of one partition. True: this call did; False: it was published already, and this call left nothing."""
    manifest_path = safe_join(root, "manifests", f"{check_name(partition, 'partition')}.json")
    data_path = safe_join(root, "data", partition, f"{uuid.uuid4().hex}.parquet")
    try:
        with replacing(data_path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        manifest = {
            **facts,
            "partition": partition,
            "rows": table.num_rows,
            "files": [{"path": str(data_path.relative_to(root.resolve())), "sha256": file_sha256(data_path), "rows": table.num_rows}],
        }
        published = put_if_absent(manifest_path, canonical_json(manifest).encode())
    except BaseException:
        # whatever stopped us, only our own attempt is removed, and only if no manifest names it
        if not (manifest_path.is_file() and data_path.name in manifest_path.read_text()):
            data_path.unlink(missing_ok=True)
        raise
    if not published:
        data_path.unlink()
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


def read_published(root: Path, bundle_sha256: str | None = None) -> pa.Table:
    """The score rows that manifests name, of one model or of all. DamagedInputError: a named file is missing or altered."""
    tables = []
    for manifest in read_manifests(root):
        if bundle_sha256 is not None and manifest["bundle_sha256"] != bundle_sha256:
            continue
        for entry in manifest["files"]:
            path = safe_join(root, entry["path"])
            if not path.is_file() or file_sha256(path) != entry["sha256"]:
                remedy = f"delete manifests/{manifest['partition']}.json and score again"
                raise DamagedInputError(f"{path} is missing or does not match its manifest; {remedy}")
            tables.append(pq.read_table(path, partitioning=None))
    return pa.concat_tables(tables) if tables else SCORE_SCHEMA.empty_table()


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
