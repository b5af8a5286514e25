"""Kill a process that gives no sign of life, from a process of its own.

`python watchdog_process.py PID TIMEOUT_S`, with what `Watch` writes on stdin.
"""

import os
import select
import signal
import sys

WATCHED, UNWATCHED = b"1", b"0"  # a sign of life, and that none will come for now


def guard(pid: int, timeout_s: float) -> None:
    """Follow the parent process `pid` until it is gone, or kill it if it is watched and silent for
    `timeout_s` seconds.
    """
    watched = False
    while True:
        ready, _, _ = select.select([0], [], [], timeout_s)
        signs = os.read(0, 65536) if ready else b""
        if os.getppid() != pid or (ready and not signs):  # it ended
            return
        if signs:
            watched = signs.endswith(WATCHED)
        elif watched:
            # told first: who sees the process gone may look at once
            print(
                (
                    f"process {pid} gave no sign of life for {timeout_s:g} s, as one that was stopped does, "
                    "and was killed"
                ),
                flush=True,
            )
            os.kill(pid, signal.SIGKILL)
            return


if __name__ == "__main__":
    guard(int(sys.argv[1]), float(sys.argv[2]))
