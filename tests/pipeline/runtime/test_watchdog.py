"""A process under watch: it goes on while it gives signs of life, and ends when it hangs or was stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.places import ROOT

WATCHING = """
import ctypes, os, signal, sys, time
from pipeline.runtime import watchdog as watch
watch.GRACE_S = 3.0
one = watch.Watch(open(sys.argv[1], "a"), 3.0)
with one:
    print(one.guard.pid, flush=True)
    {inside}
{after}
print("through", flush=True)
"""
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"


def start(tmp_path: Path, inside: str, after: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WATCHING.format(inside=inside, after=after), str(tmp_path / "stuck.txt")]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def guard_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def check_gone(pid: int) -> None:
    """A guard ends with the process it guards."""
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # nobody has asked for its exit code yet
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)
    pytest.fail("the guard is still there")


def test_a_stopped_process_is_killed_and_it_is_told(tmp_path: Path) -> None:
    process = start(tmp_path, STOP)
    guard = guard_pid(process)
    assert process.wait(timeout=60) == -signal.SIGKILL
    check_gone(guard)
    said = (tmp_path / "stuck.txt").read_text()
    assert (
        f"process {process.pid} gave no sign of life for 6 s, as one that was stopped does, and was killed"
        in said
    )


@pytest.mark.parametrize(
    "hang", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"], ids=["asleep", "with the GIL held"]
)
def test_a_hanging_process_ends_itself_and_tells_where_it_was(tmp_path: Path, hang: str) -> None:
    process = start(tmp_path, hang)
    guard = guard_pid(process)
    assert process.wait(timeout=60) == 1
    check_gone(guard)
    said = (tmp_path / "stuck.txt").read_text()
    assert "Timeout (0:00:03)!" in said and "<string>" in said and "was killed" not in said


def test_signs_of_life_keep_a_process_going_and_nothing_is_asked_of_one_that_is_not_watched(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, "for _ in range(10): time.sleep(0.4); one.alive()", after="time.sleep(7)")
    guard = guard_pid(process)
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "through\n"), errors
    check_gone(guard)
    assert not (tmp_path / "stuck.txt").read_text()


def test_a_guard_that_is_gone_or_does_not_read_stops_nothing(tmp_path: Path) -> None:
    for number, harm in enumerate((signal.SIGKILL, signal.SIGSTOP)):
        (tmp_path / str(number)).mkdir()
        process = start(
            tmp_path / str(number),
            f"os.kill(one.guard.pid, {int(harm)}); [one.alive() for _ in range(100_000)]",
        )
        guard = guard_pid(process)
        told, errors = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, "through\n"), errors
        if harm == signal.SIGSTOP:
            os.kill(guard, signal.SIGCONT)
            check_gone(guard)
