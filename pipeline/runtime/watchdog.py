"""Watchdog of one working process: a process that hangs ends itself and leaves the stacks of its threads."""

import contextlib
import faulthandler
import os
import subprocess
import sys
from typing import TextIO

from pipeline.runtime import watchdog_process

GRACE_S = 5.0  # time for a process to write its stacks and end, before its guard kills it


class Watchdog:
    """Context that ends the process if `heartbeat` is not called every `timeout_s` seconds.

    The stacks of all threads go to `file`. The timer is a thread of faulthandler, one per process. It needs
    no GIL, so a hang in C code of a library is noticed too. A stopped process cannot end itself: a
    guard in a process of its own kills it GRACE_S later and writes a line to `file`.
    """

    def __init__(self, file: TextIO, timeout_s: float) -> None:
        self.file, self.timeout_s = file, timeout_s
        self.guard: subprocess.Popen[bytes] | None = None

    def heartbeat(self) -> None:
        """Restart the timer."""
        faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=self.file)
        self._signal_guard(watchdog_process.HEARTBEAT)

    def __enter__(self) -> "Watchdog":
        if self.guard is None:
            self.guard = self._start_guard()
        self.heartbeat()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._signal_guard(watchdog_process.PAUSE)

    def _start_guard(self) -> subprocess.Popen[bytes]:
        script = [watchdog_process.__file__, str(os.getpid()), str(self.timeout_s + GRACE_S)]
        # -I and -S: it needs the standard library only, and starts faster
        command = [sys.executable, "-I", "-S", *script]
        guard = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self.file, stderr=self.file, bufsize=0
        )
        assert guard.stdin is not None
        # a stopped guard must not block the work
        os.set_blocking(guard.stdin.fileno(), False)
        return guard

    def _signal_guard(self, signal: bytes) -> None:
        assert self.guard is not None and self.guard.stdin is not None
        # a guard that ended or does not read: the timer in this process goes on
        with contextlib.suppress(OSError):
            self.guard.stdin.write(signal)
