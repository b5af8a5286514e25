"""Guard process: kill a watched process that sends no heartbeat.

Usage: `python watchdog_process.py PID TIMEOUT_S`; `Watchdog` writes the signals to its stdin. It is started
by its path, so it imports the standard library only.
"""

import contextlib
import os
import select
import signal
import sys

HEARTBEAT, PAUSE = b"1", b"0"  # a pause lasts until the next heartbeat


def guard(pid: int, timeout_s: float) -> None:
    """Kill the parent process `pid` if no heartbeat comes for `timeout_s` seconds; return once it ended."""
    is_watched = False
    while True:
        ready, _, _ = select.select([0], [], [], timeout_s)
        signals = os.read(0, 65536) if ready else b""
        is_stdin_closed = ready and not signals
        if os.getppid() != pid or is_stdin_closed:  # the parent ended
            return
        if signals:
            is_watched = signals.endswith(HEARTBEAT)
        elif is_watched:
            reason = f"process {pid} killed: no heartbeat for {timeout_s:g} s; it was probably stopped"
            with contextlib.suppress(OSError):  # a full disk must not keep the process alive
                print(reason, flush=True)  # first, so that the file is complete when the process ends
            os.kill(pid, signal.SIGKILL)
            return


if __name__ == "__main__":
    guard(int(sys.argv[1]), float(sys.argv[2]))
