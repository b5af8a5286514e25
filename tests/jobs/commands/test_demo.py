"""`relevance demo`: the labels that it shows at its end."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.command_run import CommandRun
from jobs.commands import demo
from jobs.commands.data import sample
from jobs.commands.demo import example_cells, read_pairs
from jobs.console import Console
from jobs.options import DEMO_CONFIG
from pipeline.config.loading import read_config
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring.label_store import publish_unit
from pipeline.scoring.scoring_record import ScoringRecord, put_record
from pipeline.scoring.unit_manifest import UnitInput
from tests.support.score_partitions import score_table, unit_manifest

DECISIONS = ("relevant", "irrelevant", "abstain")


def quiet_run() -> CommandRun:
    return CommandRun(Console(err=io.StringIO(), out=io.StringIO()))


def write_pairs(root: Path, num_rows: int, seed: int) -> dict[str, dict[str, Any]]:
    """Write pairs of the synthetic marketplace as the demo's sources do, and return those to score."""
    sample(root / "demo" / "data", 20, num_rows, seed, quiet_run())
    return read_pairs(read_config(DEMO_CONFIG, [f"work_dir={root}"]))


def labels_of(pairs: dict[str, dict[str, Any]], **columns: Any) -> pa.Table:
    """Return a label of each pair, with decisions in turn."""
    (plain,) = score_table(1).to_pylist()
    rows = [
        {**plain, "row_id": row_id, "task": row_id.rpartition("-")[0], "decision": DECISIONS[number % 3]}
        for number, row_id in enumerate(pairs)
    ]
    return pa.Table.from_pylist([{**row, **columns} for row in rows], SCORE_SCHEMA)


def test_every_decision_is_shown_with_the_texts_of_its_pair(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, 6, 17)
    assert len(pairs) == 24
    headings, *cells = example_cells(labels_of(pairs), pairs)
    assert headings[0] == "decision"
    assert [row[0] for row in cells] == [decision for decision in DECISIONS for _ in range(2)]
    texts = {(pair["query"], pair[name]) for pair in pairs.values() for name in ("ad_title", "ad_keyword")}
    assert all((row[4], row[5]) in texts for row in cells)


def test_labels_of_an_earlier_demo_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = tmp_path / "scores"
    for run_id, num_rows, seed in (("first", 6, 17), ("second", 3, 18)):
        pairs = write_pairs(tmp_path, num_rows, seed)
        labels = labels_of(pairs, label_name=run_id, bundle_sha256=run_id)
        tasks = tuple(sorted(set(labels["task"].to_pylist())))
        read = UnitInput("rows.parquet", run_id, None, len(pairs))
        manifest = unit_manifest(run_id, input=read, bundle_sha256=run_id)
        publish_unit(scores, dataclasses.replace(manifest, tasks=tasks), labels)
        put_record(scores, ScoringRecord(run_id, (run_id,), True))
    shown: list[Any] = []
    run = quiet_run()
    monkeypatch.setattr(CommandRun, "id", "second")
    monkeypatch.setattr(run, "table", lambda rows: shown.extend(rows))
    result = {
        "model": "m",
        "version": "2",
        "alias": "champion",
        "tracking_uri": "sqlite:///x",
        "data_docs": "d",
    }
    monkeypatch.setattr(demo, "run_all", lambda *_: {**result, "scores": str(scores)})
    monkeypatch.setattr(demo, "ceiling_line", lambda config: "")
    demo.run_demo(read_config(DEMO_CONFIG, [f"work_dir={tmp_path}"]), run)
    texts = {pair["query"] for pair in pairs.values()}
    assert len(shown) == 7 and all(row[2] == "second" and row[4] in texts for row in shown[1:])
