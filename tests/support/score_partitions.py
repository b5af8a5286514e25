"""Made-up partitions of scores, and what is published of them."""

from pathlib import Path

import pyarrow as pa

from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring.label_store import (
    read_published,
)

FACTS = {"bundle_sha256": "b" * 64, "task": "search"}


def score_rows(count: int, prefix: str = "r") -> pa.Table:
    """Return so many rows of scores."""
    values = {
        "task": "search",
        "probability": 0.5,
        "label": 1,
        "label_name": "good",
        "expected_grade": 0.5,
        "decision": "abstain",
    }
    versions = {"model_version": "1", "bundle_sha256": "b" * 64}
    return pa.Table.from_pylist(
        [{"row_id": f"{prefix}{n}", **values, **versions} for n in range(count)], SCORE_SCHEMA
    )


def files_below(root: Path) -> list[str]:
    """Return the paths of all files of a folder."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def row_ids(root: Path) -> list[str]:
    """Return the ids of all published rows."""
    return sorted(read_published(root).column("row_id").to_pylist())
