"""Validation with sources, killed at any file event: the same command again is as if never killed."""

import json
from pathlib import Path

import pytest

from jobs.command_run import CommandRun
from jobs.commands.data import import_sources
from jobs.commands.validate import run_validate
from jobs.console import Console
from pipeline.config.loading import build_config
from tests.support.kills import kill_at_every_event
from tests.support.planted import planted_config, planted_rows

# times, and stamps of files, differ from run to run
UNSTABLE = ["*/data_docs/*", "*/partitions/*/verdict.json"]


def _validate(root: Path) -> str:
    """Import two tables and check their rows; return the digest of the accepted ones."""
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
    run = CommandRun(Console())
    import_sources(config, run)
    return str(run_validate(config, run)["data_digest"])


@pytest.mark.failures
def test_killed_validation_runs_again_as_if_never_killed(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    for task in ("two", "three"):
        rows = planted_rows(task, 80, 1)
        lines = [json.dumps({**row, "label": str(row["label"])}) for row in rows]
        (template / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    kills = kill_at_every_event(_validate, template, tmp_path / "root", stride=9)
    assert not kills.differences(UNSTABLE)
    assert {kill.rerun.value for kill in kills.kills} == {kills.unkilled.value}
    assert len(kills.kills) > 8
