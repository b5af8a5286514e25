"""`relevance runs`: the history of commands, and one command in detail."""

import json
import logging
import shlex
from pathlib import Path

import pytest

from pipeline.runtime.run_log import logging_to
from pipeline.runtime.run_record import DONE, RunRecorder
from tests.support.commands import last_json, relevance_in_process


def make_record(work_dir: Path, name: str, command: str, run_id: str) -> RunRecorder:
    recorder = RunRecorder(work_dir / name, run_id, command, name, (command, "--config", "c.yaml"))
    with recorder:
        recorder.update(state=DONE, exit_code=0, counts={"rows": 24, "labels": {"two": 12, "three": 12}})
    return recorder


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    make_record(tmp_path, "daily", "train", "20260101-000000-000-aaaaaa")
    make_record(tmp_path, "weekly", "score", "20260103-000000-000-aaaaaa")
    failed = make_record(tmp_path, "daily", "score", "20260102-000000-000-bbbbbb")
    with failed, logging_to(failed.log, "actor 1"):
        failed.update(state="failed", exit_code=3, reason="the store is away")
        logging.getLogger("pipeline.scoring").error("put failed")
    return tmp_path


def test_commands_are_listed_newest_first_with_their_counts(work_dir: Path) -> None:
    result = relevance_in_process("runs", str(work_dir), cwd=work_dir)
    heading, *lines, _ = result.stdout.splitlines()
    assert heading.split()[:3] == ["run", "id", "run"]
    assert [line.split()[1:4] for line in lines] == [
        ["weekly", "score", "done"],
        ["daily", "score", "failed"],
        ["daily", "train", "done"],
    ]
    assert lines[0].split()[-3:] == ["24", "24", "0"]
    assert last_json(result)["next"] == f"relevance runs 20260102-000000-000-bbbbbb --work-dir {work_dir}"


def test_suggested_commands_quote_their_paths(work_dir: Path) -> None:
    spaced = work_dir / "my runs"
    (work_dir / "daily").rename(spaced)
    for command, target in (("runs", spaced), ("status", spaced)):
        found = last_json(relevance_in_process(command, str(target), cwd=work_dir))["next"]
        assert str(spaced) in shlex.split(found)


def test_json_lists_commands_for_programs(work_dir: Path) -> None:
    result = relevance_in_process("runs", str(work_dir), "--json", cwd=work_dir)
    (line,) = result.stdout.splitlines()
    first, second, _ = json.loads(line)["runs"]
    assert (first["state"], first["labels"], first["exit_code"]) == ("done", 24, 0)
    assert second["reason"] == "the store is away"


def test_one_command_shows_its_errors_and_the_next_step(work_dir: Path) -> None:
    result = relevance_in_process(
        "runs", "20260102-000000-000-bbbbbb", "--work-dir", str(work_dir), cwd=work_dir
    )
    assert "score failed" in result.stdout and "reason: the store is away" in result.stdout
    assert "actor 1: put failed" in result.stdout
    assert last_json(result)["next"] == "relevance score --config c.yaml"


def test_unknown_run_ids_are_a_config_error(work_dir: Path) -> None:
    result = relevance_in_process("runs", "20270101-0", "--work-dir", str(work_dir), cwd=work_dir)
    assert result.returncode == 2 and "run not found: 20270101-0" in result.stderr


def test_looking_writes_nothing(work_dir: Path) -> None:
    before = sorted(path for path in work_dir.rglob("*"))
    relevance_in_process("runs", str(work_dir), cwd=work_dir)
    relevance_in_process("status", str(work_dir), cwd=work_dir)
    assert sorted(path for path in work_dir.rglob("*")) == before
