"""Synthetic labels and manifests of work units, and views of what is published."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.files import file_sha256
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import publish_unit, read_published
from pipeline.scoring.unit_manifest import UnitInput, UnitManifest

BUNDLE_SHA256 = "b" * 64


def unit_manifest(unit_id: str = "p", **changes: Any) -> UnitManifest:
    """Return the manifest of a unit of task `search`, without counts and files."""
    fields: dict[str, Any] = {
        "task": "search",
        "input": UnitInput("search.parquet", "1", None, 0),
        "model_version": "1",
        "bundle_sha256": BUNDLE_SHA256,
        "encoder_version": "1",
        "all_tasks": False,
    }
    fields |= changes
    tasks = (fields["task"],)
    return UnitManifest(unit_id, **{"tasks": tasks, "profiles": {task: {} for task in tasks}, **fields})


def score_table(count: int, prefix: str = "r") -> pa.Table:
    """Return `count` labels with ids of a prefix."""
    values = {
        "task": "search",
        "probability": 0.5,
        "label": 1,
        "label_name": "good",
        "expected_grade": 0.5,
        "decision": "abstain",
        "model_version": "1",
        "bundle_sha256": BUNDLE_SHA256,
    }
    rows = [{"row_id": f"{prefix}{number}", **values} for number in range(count)]
    return pa.Table.from_pylist(rows, SCORE_SCHEMA)


def files_below(root: Path) -> list[str]:
    """Return the paths of all files in a folder, relative to it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def published_row_ids(root: Path) -> list[str]:
    """Return the ids of all published rows, sorted."""
    return sorted(read_published(root).column("row_id").to_pylist())


def publish_input(root: Path, name: str, markets: list[str], seed: int = 0) -> Path:
    """Write an input with a row of each market, and publish a unit of its labels."""
    path = root / "rows" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{name}-{number}" for number in range(len(markets))]
    rows = [
        {"row_id": row_id, "query": f"q {row_id}", "ad_title": "=title", "market": market}
        for row_id, market in zip(ids, markets, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    draw = np.random.default_rng(seed)
    plain = score_table(1).to_pylist()[0]
    labels = [
        {
            **plain,
            "row_id": row_id,
            "probability": float(probability),
            "decision": "relevant" if probability > 0.7 else "irrelevant" if probability < 0.3 else "abstain",
        }
        for row_id, probability in zip(ids, draw.random(len(ids)), strict=True)
    ]
    source = UnitInput(str(path), file_sha256(path), None, len(ids))
    publish_unit(
        root / "scores", unit_manifest(name, input=source), pa.Table.from_pylist(labels, SCORE_SCHEMA)
    )
    return path
