"""Rows that are published as an import does, and its files by the names without digests."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.catalog import logical_name
from pipeline.data.writer import StagedRows
from pipeline.schema import ROW_SCHEMA


def equal_rows(count: int, prefix: str = "r", **changes: Any) -> pa.Table:
    """Build contract rows that differ in row_id and query only; `changes` are values of other columns."""
    row = {"ad_title": "t", "market": "us", "label": 1, "weight": 0.5} | changes
    return pa.Table.from_pylist(
        [{"row_id": f"{prefix}{n}", "query": f"q{n}"} | row for n in range(count)], ROW_SCHEMA
    )


def publish_tables(out_dir: Path, stem: str = "part", **tables: pa.Table) -> None:
    """Publish the rows of each task."""
    with StagedRows(out_dir, stem) as staged:
        for task, table in tables.items():
            staged.write(task, table)
        staged.publish()


def imported(root: Path, name: str) -> Path:
    """Return the file below `root` that was published as `name`, such as task=two/part-0.parquet."""
    (path,) = (
        path for path in (root / name).parent.glob("*.parquet") if logical_name(path.name) == Path(name).name
    )
    return path


def file_names(root: Path) -> list[str]:
    """Return the names of all files below `root`, sorted, without locks."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(logical_name(str(path.relative_to(root))) for path in paths)
