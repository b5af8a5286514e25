"""A process that this user cannot see is not taken for one that has ended."""

import os
import subprocess
import sys

import pytest

from models import processes
from models.processes import has_ended, process_start_s


def test_other_process_with_the_same_pid_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    own_s = process_start_s(os.getpid())
    assert own_s is not None
    assert not has_ended(os.getpid(), own_s) and has_ended(os.getpid(), own_s - 1)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert has_ended(process.pid, own_s) and has_ended(10**30, own_s) and has_ended(0, own_s)


def test_hidden_process_of_another_user_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(processes, "process_start_s", lambda pid: None)
    monkeypatch.setattr(os, "kill", refuse)
    assert not has_ended(12, 3.0)


def test_process_that_may_not_be_read_has_an_unknown_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    assert process_start_s(1) is None
