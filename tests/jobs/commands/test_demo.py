"""`relevance demo`: the labels that it shows at its end."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.command_run import CommandRun
from jobs.commands.data import sample
from jobs.commands.demo import DEMO_CONFIG, example_cells, read_pairs
from jobs.console import Console
from pipeline.config.loading import read_config


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Pairs of the synthetic marketplace, as the demo's sources write them."""
    console = Console(err=io.StringIO(), out=io.StringIO())
    sample(tmp_path / "demo" / "data", 20, 6, 17, CommandRun(console))
    return read_pairs(read_config(DEMO_CONFIG, [f"work_dir={tmp_path}"]))


def test_every_decision_is_shown_with_the_texts_of_its_pair(pairs: dict[str, dict[str, Any]]) -> None:
    assert len(pairs) == 24
    decisions = ("relevant", "irrelevant", "abstain")
    labels = [
        {
            "row_id": row_id,
            "task": row_id.rpartition("-")[0],
            "probability": 0.5,
            "label_name": "exact",
            "decision": decisions[number % 3],
        }
        for number, row_id in enumerate(pairs)
    ]
    headings, *cells = example_cells(pa.Table.from_pylist(labels), pairs)
    assert headings[0] == "decision" and [row[0] for row in cells] == [
        decision for decision in decisions for _ in range(2)
    ]
    queries = {pair["query"] for pair in pairs.values()}
    assert all(row[4] in queries and row[5] for row in cells)
