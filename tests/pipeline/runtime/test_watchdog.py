"""Watchdog: heartbeats keep a process alive; without them it ends, hanging or stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import watchdog_process
from tests.support.clock_jump import JUMP_S, clock_jump_environment
from tests.support.places import ROOT

PROGRAM = """
import ctypes, os, signal, sys, time
from pipeline.runtime import watchdog as module
module.GRACE_S = 3.0
watchdog = module.Watchdog(open(sys.argv[1], "a"), 3.0)
with watchdog:
    print(watchdog.guard.pid, flush=True)
    {inside}
{after}
print("through", flush=True)
"""
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"


def start(tmp_path: Path, inside: str, after: str = "", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(inside=inside, after=after), str(tmp_path / "stuck.txt")]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def guard_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def wait_until_gone(pid: int) -> None:
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # ended, exit code not collected yet
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)
    pytest.fail("the guard still runs")


def test_stopped_process_is_killed_and_the_file_names_it(tmp_path: Path) -> None:
    process = start(tmp_path, STOP)
    guard = guard_pid(process)
    assert process.wait(timeout=60) == -signal.SIGKILL
    wait_until_gone(guard)
    message = f"process {process.pid} killed: no heartbeat for 6 s; it was probably stopped"
    assert message in (tmp_path / "stuck.txt").read_text()


FULL_DISK = """
import os, subprocess, sys, time
command = [sys.executable, sys.argv[1], str(os.getpid()), "0.3"]
guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=open("/dev/full", "w"))
guard.stdin.write(b"1")
guard.stdin.flush()
time.sleep(60)
"""


def test_full_disk_does_not_keep_a_hung_process_alive() -> None:
    program = [sys.executable, "-c", FULL_DISK, watchdog_process.__file__]
    assert subprocess.run(program, timeout=50).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "hang", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"], ids=["asleep", "with the GIL held"]
)
def test_hanging_process_ends_itself_with_its_stacks(tmp_path: Path, hang: str) -> None:
    process = start(tmp_path, hang)
    guard = guard_pid(process)
    assert process.wait(timeout=60) == 1
    wait_until_gone(guard)
    stacks = (tmp_path / "stuck.txt").read_text()
    assert "Timeout (0:00:03)!" in stacks and "<string>" in stacks and "killed" not in stacks


def test_heartbeats_keep_a_process_and_unwatched_time_is_free(tmp_path: Path) -> None:
    beats = "for _ in range(10): time.sleep(0.4); watchdog.heartbeat()"
    process = start(tmp_path, beats, after="time.sleep(7)")
    guard = guard_pid(process)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "through\n"), errors
    wait_until_gone(guard)
    assert not (tmp_path / "stuck.txt").read_text()


@pytest.mark.failures
@pytest.mark.parametrize("seconds", [-JUMP_S, JUMP_S], ids=["back", "forward"])
def test_clock_jump_neither_ends_nor_prolongs_the_limit(tmp_path: Path, seconds: int) -> None:
    environment = clock_jump_environment(tmp_path, seconds)
    jump = "before = time.time(); open(os.environ['CLOCK_JUMPED'], 'w').close()"
    check = f"assert abs(time.time() - before - {seconds}) < 60"
    beats = "[(time.sleep(0.3), watchdog.heartbeat()) for _ in range(8)]"
    processes = {}
    for name, end in (("beating", beats), ("hanging", "time.sleep(600)"), ("stopped", STOP)):
        folder = tmp_path / name
        folder.mkdir()
        own = environment | {"CLOCK_JUMPED": str(folder / "jumped")}
        processes[name] = start(folder, f"{jump}; {check}; {end}", **own)
    started_s = time.monotonic()
    codes = {name: process.wait(timeout=60) for name, process in processes.items()}
    assert codes == {"beating": 0, "hanging": 1, "stopped": -signal.SIGKILL}, [
        process.stderr.read() for process in processes.values() if process.stderr
    ]
    assert time.monotonic() - started_s < 50
    assert "Timeout (0:00:03)!" in (tmp_path / "hanging" / "stuck.txt").read_text()
    assert "no heartbeat for 6 s" in (tmp_path / "stopped" / "stuck.txt").read_text()


def test_lost_or_stopped_guard_does_not_block_the_work(tmp_path: Path) -> None:
    for number, harm in enumerate((signal.SIGKILL, signal.SIGSTOP)):
        (tmp_path / str(number)).mkdir()
        many_beats = "[watchdog.heartbeat() for _ in range(70_000)]"
        process = start(tmp_path / str(number), f"os.kill(watchdog.guard.pid, {int(harm)}); {many_beats}")
        guard = guard_pid(process)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "through\n"), errors
        if harm == signal.SIGSTOP:
            os.kill(guard, signal.SIGCONT)
            wait_until_gone(guard)
