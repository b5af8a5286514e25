"""A watch over one working process: where it gets no further it ends itself, so that it is started again, and
leaves where it was stuck.
"""

import contextlib
import faulthandler
import os
import subprocess
import sys
from typing import TextIO

from pipeline.runtime import watchdog_process

GRACE_S = 5.0  # that a process has to end itself, and tell where it was, before its guard kills it


class Watch:
    """While inside, `alive` must be called every `timeout_s` seconds, or the process ends with a stack of
    each of its threads in `file`.

    The clock is faulthandler's thread, which needs no GIL, so that a hang in a library's C code is noticed
    too. A process has one such clock. A process that does not even run, as it was stopped, is killed GRACE_S
    later by a guard in a process of its own, which says so in `file`.
    """

    def __init__(self, file: TextIO, timeout_s: float) -> None:
        self.file, self.timeout_s = file, timeout_s
        self.guard: subprocess.Popen[bytes] | None = None

    def alive(self) -> None:
        """Wind up the clock."""
        faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=self.file)
        self._tell_guard(watchdog_process.WATCHED)

    def __enter__(self) -> "Watch":
        if self.guard is None:
            command = [
                sys.executable,
                "-I",
                "-S",
                watchdog_process.__file__,
                str(os.getpid()),
                str(self.timeout_s + GRACE_S),
            ]
            self.guard = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=self.file, stderr=self.file, bufsize=0
            )
            assert self.guard.stdin is not None
            # a guard that is stopped itself must not stop the work
            os.set_blocking(self.guard.stdin.fileno(), False)
        self.alive()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._tell_guard(watchdog_process.UNWATCHED)

    def _tell_guard(self, sign: bytes) -> None:
        assert self.guard is not None and self.guard.stdin is not None
        # it is gone, or has not read for long: the clock in this process goes on
        with contextlib.suppress(OSError):
            self.guard.stdin.write(sign)
