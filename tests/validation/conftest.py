"""Small valid tables, shared by the tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.tasks import Task
from pipeline.schema import ROW_SCHEMA

NUM_ROWS = 6


def _build_table(prefix: str = "r", **columns: list[Any]) -> pa.Table:
    good: dict[str, list[Any]] = {
        "row_id": [f"{prefix}{i}" for i in range(NUM_ROWS)],
        "query": [f"running shoes {prefix}{i}" for i in range(NUM_ROWS)],
        "ad_title": [
            "Trail runner",
            "Straßenschuh",
            "ランニングシューズ",
            "a",
            "Shoe <b>sale</b> & more",
            "🏃",
        ],
        "ad_description": ["light", None, "", "x\ny", "30% off", "\u200bzero"],
        "ad_keyword": ["shoes", None, None, None, None, None],
        "landing_page": [None, "https://example.com/a?b=1&c=2", None, None, None, None],
        "market": ["us", "de", "jp", "us", "us", "gb"],
        "label": [0, 1, 2, 2, 1, 0],
        "weight": [None, 0.0, -0.0, 1.0, 1_000.0, 0.5],
        "official_split": ["train", None, "test", "train", "dev", ""],
        "subset": [None, "small", "large", None, None, "x"],
    }
    return pa.table(
        {field.name: pa.array(columns.get(field.name, good[field.name]), field.type) for field in ROW_SCHEMA}
    )


@pytest.fixture(scope="session")
def build_table() -> Callable[..., pa.Table]:
    """Build six valid rows; a keyword replaces a whole column, `prefix` starts the row_ids."""
    return _build_table


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(
        name="query-ad", labels=("bad", "fair", "good"), relevant_from=1, template="{query} {ad_title}"
    )


@pytest.fixture(scope="session")
def other_task() -> Task:
    return Task(
        name="keyword", labels=("no", "yes", "very"), relevant_from=1, template="{query} {ad_keyword}"
    )


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write tables as task=<name>/part-<i>.parquet and return the data folder."""

    def write(tables: dict[str, list[pa.Table]]) -> Path:
        for name, parts in tables.items():
            folder = tmp_path / "data" / f"task={name}"
            folder.mkdir(parents=True, exist_ok=True)
            for i, table in enumerate(parts):
                pq.write_table(table, folder / f"part-{i}.parquet")
        return tmp_path / "data"

    return write
