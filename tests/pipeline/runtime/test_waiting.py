"""Messages about long waits."""

import re
import threading
import time
from pathlib import Path

import pytest

from pipeline.runtime import waiting
from pipeline.runtime.waiting import announce_wait, hold_lock
from tests.support.places import ROOT


@pytest.fixture
def quick(monkeypatch):
    """Announce after hundredths of a second."""
    monkeypatch.setattr(waiting, "FIRST_S", 0.05)
    monkeypatch.setattr(waiting, "EVERY_S", 0.05)
    monkeypatch.setattr(waiting, "POLL_S", 0.01)


def wait_for(condition):
    """Wait up to 10 s until a condition holds."""
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_long_wait_is_announced_again_and_again(quick, caplog):
    counts = iter(range(100))
    with caplog.at_level("INFO"), announce_wait(lambda: f"worker {next(counts)}"):
        wait_for(lambda: len(caplog.messages) >= 2)
    assert caplog.messages[0].startswith("  waiting for worker 0 (")
    assert caplog.messages[1].startswith("  waiting for worker 1 (")


def test_short_wait_is_silent(caplog):
    started_s = time.monotonic()
    with caplog.at_level("INFO"), announce_wait("nothing"):
        pass
    assert not caplog.messages and time.monotonic() - started_s < waiting.FIRST_S


def test_wait_that_is_over_is_silent_while_the_context_goes_on(quick, caplog):
    with caplog.at_level("INFO"), announce_wait("a worker", lambda: True):
        time.sleep(0.2)
    assert not caplog.messages


def test_failure_of_a_reason_does_not_reach_the_waiter(quick, caplog):
    def reason():
        raise OSError("the cluster is gone")

    with caplog.at_level("DEBUG"), announce_wait(reason):
        wait_for(lambda: "cannot be described" in caplog.text)


def test_wait_for_the_holder_of_a_lock_is_announced(quick, caplog, tmp_path):
    def hold():
        with hold_lock(tmp_path / "lock", "nobody"):
            held.set()
            wait_for(lambda: caplog.messages)

    held = threading.Event()
    holder = threading.Thread(target=hold)
    with caplog.at_level("INFO"):
        holder.start()
        assert held.wait(10)
        with hold_lock(tmp_path / "lock", "another process"):
            holder.join()
    assert "waiting for another process (" in caplog.messages[0]


def test_locks_are_waited_for_aloud_or_not_for_ever():
    sources = [
        path
        for package in ("models", "pipeline", "validation", "jobs")
        for path in (ROOT / package).rglob("*.py")
    ]
    silent = [
        str(path.relative_to(ROOT))
        for path in sources
        if re.search(r"FileLock\((?!.*timeout=)", path.read_text()) and path != Path(waiting.__file__)
    ]
    assert silent == []
