"""Contract rows whose label is the last word of the title.

A model learns it at once; the lexical baseline cannot, because the word never occurs in the query.
"""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.inference.bundle_description import TrainingRecord
from pipeline.schema import ROW_SCHEMA

WORDS = [
    "red",
    "blue",
    "green",
    "shoes",
    "phone",
    "table",
    "lamp",
    "chair",
    "dress",
    "watch",
    "camera",
    "paper",
    "garden",
    "kettle",
]
# of bundles that no training wrote
TRAINING = TrainingRecord(
    fingerprint="f" * 64, data_digest="d" * 64, steps=1, rows=8, trainable_parameters=1, best=None
)
# last word of the title by label
LABEL_WORDS = {"two": ("north", "south"), "three": ("north", "east", "south")}


def planted_rows(task: str, num_rows: int, seed: int, labeled: bool = True) -> list[dict[str, Any]]:
    """Build rows of one task, two for each query."""
    draw = random.Random(f"{task}-{seed}")
    rows = []
    for number in range(num_rows):
        if number % 2 == 0:
            query = " ".join(draw.sample(WORDS, 3)) + f" {number // 2}"
        label = draw.randrange(len(LABEL_WORDS[task]))
        title = " ".join(draw.sample(WORDS, 3)) + " " + LABEL_WORDS[task][label]
        texts = {
            "query": query,
            "ad_title": title,
            "ad_description": None,
            "ad_keyword": None,
            "landing_page": None,
        }
        rows.append(
            {
                "row_id": f"{task}-{seed}-{number}",
                **texts,
                "market": "us",
                "label": label if labeled else None,
                "weight": None,
            }
        )
    return rows


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as one parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)


def write_planted(root: Path, num_rows: int = 160, num_to_score: int = 12) -> None:
    """Write root/judged with one file per task, and root/to_score with two."""
    for task in LABEL_WORDS:
        write_rows(planted_rows(task, num_rows, 1), root / "judged" / f"task={task}" / "part-0.parquet")
        for part in (0, 1):
            rows = planted_rows(task, num_to_score // 2, 10 + part, labeled=False)
            write_rows(rows, root / "to_score" / f"task={task}" / f"part-{part}.parquet")


def planted_config(root: Path, source: str, **blocks: Any) -> dict[str, Any]:
    """Build a config for the planted rows; `blocks` add to it or replace its blocks."""
    template = "Query: {query}\nAd: {ad_title}"
    return {
        "name": "planted",
        "seed": 5,
        "work_dir": str(root / "runs"),
        "data": {"judged": str(root / "judged"), "to_score": str(root / "to_score")},
        "tasks": [
            {"name": "two", "labels": ["bad", "good"], "relevant_from": 1, "template": template},
            {"name": "three", "labels": ["bad", "fair", "good"], "relevant_from": 1, "template": template},
        ],
        "split": {"valid_share": 0.15, "test_share": 0.25},
        "encode": {"max_tokens": 96},
        "backbone": {"source": source, "dtype": "float32"},
        "training": {"num_workers": 2, "epochs": 3, "batch_rows": 16, "checkpoint_every_steps": 10},
        "optimizer": {"learning_rate": 0.01, "head_learning_rate": 0.02},
        "registry": {"model": "planted"},
        "scoring": {"num_actors": 1, "threads_per_actor": 1},
        **blocks,
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a config as YAML."""
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
