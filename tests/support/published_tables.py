"""Small units of one or more tables, and views of what is published."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.publishing.unit_store import PublishedFile, open_table, publish_tables, read_manifests
from pipeline.storage.object_store import open_store


def publish_rows(root: Path, unit_id: str, count: int, prefix: str = "r", notes: int = 0) -> bool:
    """Publish a unit of `count` rows with ids of a prefix, and `notes` rows in a second table."""
    tables = {"rows": row_table(count, prefix)} | ({"notes": row_table(notes, "note")} if notes else {})
    return publish_tables(
        root, unit_id, tables, lambda files: {name: [asdict(file)] for name, file in files.items()}
    )


def row_table(count: int, prefix: str = "r") -> pa.Table:
    """Return a table of row ids."""
    return pa.table({"row_id": pa.array([f"{prefix}{number}" for number in range(count)], pa.string())})


def published_rows(root: Path, folder: str = "rows") -> list[str]:
    """Return the ids of all published rows of a folder, sorted."""
    units: list[tuple[str, dict[str, Any]]] = read_manifests(
        root, lambda manifest: (manifest[folder][0]["path"].split("/")[1], manifest[folder][0])
    )
    store = open_store(root)
    tables = [open_table(store, unit, PublishedFile(**file)).read() for unit, file in units]
    return sorted(row_id for table in tables for row_id in table["row_id"].to_pylist())
