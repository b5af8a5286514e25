"""Files that are no scoring record are named in place of ending commands with a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DamagedInputError
from pipeline.scoring.label_store import publish_unit, read_manifests
from pipeline.scoring.score_cache import find_cached_files
from pipeline.scoring.scoring_record import ScoringRecord, newest_records, put_record, read_run
from tests.support.score_partitions import score_table, unit_manifest

NO_RECORDS: tuple[Any, ...] = (
    {},
    3,
    None,
    [1],
    [["partitions", []]],
    "text",
    {"partitions": 3},
    {"partitions": [], "profiles": 3},
    {"partitions": [], "tasks": []},
    {"partitions": [], "units_failed": [3]},
    {"partitions": [], "spent": {"unknown": 1}},
    {"partitions": [], "drift": {"against_last_run": [{}]}},
)


def test_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    publish_unit(tmp_path, unit_manifest("p"), score_table(3))
    put_record(tmp_path, ScoringRecord("20261130-a", ("p",), accepted=True))
    notes = tmp_path / "runs" / "notes.json"
    for content in NO_RECORDS:
        notes.write_text(json.dumps(content))
        for read in (
            lambda: list(newest_records(tmp_path)),
            lambda: find_cached_files(tmp_path, "b"),
            lambda: read_run(tmp_path),
            lambda: read_run(tmp_path, "notes"),
        ):
            with pytest.raises(DamagedInputError, match="runs/notes.json"):
                read()
    notes.unlink()
    assert read_run(tmp_path).num_rows == 3


def test_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    publish_unit(tmp_path, unit_manifest("p"), score_table(3))
    path = tmp_path / "manifests" / "p.json"
    manifest = json.loads(path.read_text())
    for content in ({}, [], 3, None, {**manifest, "input": []}, {**manifest, "files": 3}):
        path.write_text(json.dumps(content))
        with pytest.raises(DamagedInputError, match="manifests/p.json"):
            read_manifests(tmp_path)
