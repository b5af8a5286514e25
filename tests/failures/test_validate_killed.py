"""Import and validation of sources, killed before file events: the next command is as if never killed."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.command_run import CommandRun
from jobs.commands.data import import_sources
from jobs.commands.validate import run_validate
from jobs.console import Console
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.data.reader import data_digest, find_partitions
from tests.support.kills import kill_at_every_event
from tests.support.planted import planted_config, planted_rows

pytestmark = pytest.mark.failures

# times, and stamps of files, differ from run to run
UNSTABLE = ["*/data_docs/*", "*/partitions/*/verdict.json"]


def _config(root: Path) -> RunConfig:
    sources = [
        {
            "kind": "table",
            "path": str(root / f"{task}.jsonl"),
            "task": task,
            "columns": {name: name for name in ("row_id", "query", "ad_title", "label")},
            "labels": {str(label): label for label in range(3 if task == "three" else 2)},
            "constants": {"market": "us"},
        }
        for task in ("two", "three")
    ]
    config = build_config(planted_config(root, "nowhere", sources=sources), "c.yaml")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    return config


def _import(root: Path) -> str:
    """Import two tables; return the digest of their rows."""
    config = _config(root)
    import_sources(config, CommandRun(Console()))
    return data_digest(find_partitions(Path(config.judged_location), config.tasks))


def _validate(root: Path) -> str:
    """Import two tables and check their rows; return the digest of the accepted ones."""
    config, run = _config(root), CommandRun(Console())
    import_sources(config, run)
    return str(run_validate(config, run)["data_digest"])


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """Return a folder with two tables."""
    folder = tmp_path / "template"
    folder.mkdir()
    for task in ("two", "three"):
        rows = planted_rows(task, 80, 1)
        lines = [json.dumps({**row, "label": str(row["label"])}) for row in rows]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _kill(function: Any, template: Path, stride: int) -> None:
    """Kill a function before every `stride`th event; every rerun must end as if never killed."""
    kills = kill_at_every_event(function, template, template.parent / "root", stride=stride)
    assert not kills.differences(UNSTABLE)
    assert {kill.rerun.value for kill in kills.kills} == {kills.unkilled.value}
    assert len(kills.kills) > 8


def test_import_killed_before_any_event_runs_again(template: Path) -> None:
    _kill(_import, template, stride=1)


@pytest.mark.timeout(5_400)  # with KILL_STRIDE=1
def test_validation_killed_before_every_ninth_event_runs_again(template: Path) -> None:
    _kill(_validate, template, stride=9)
