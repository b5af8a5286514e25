"""Identity of this machine and of its processes: tells a live owner of a file from a dead one."""

import functools
import os
import socket
from pathlib import Path


@functools.cache
def machine_id() -> str:
    """Return an id of this boot of the machine and its process namespace.

    It differs between containers and after a restart, where host names do not.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if not boot_id.is_file():
        return socket.gethostname()
    return f"{boot_id.read_text('utf-8').strip()}-{Path('/proc/self/ns/pid').stat().st_ino}"


def has_ended(pid: int, start_s: float) -> bool:
    """Return True if the process of this machine that had a pid and began at `start_s` has ended."""
    current_s = process_start_s(pid)
    if current_s is not None:
        return round(100 * current_s) != round(100 * start_s)
    # /proc may be mounted so that it hides the processes of other users
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return pid <= 0  # these stand for groups


def process_start_s(pid: int) -> float | None:
    """Return when a process of this machine began, in seconds after the machine's start; None if unknown.

    It distinguishes processes that had the same pid one after the other. Unlike a time of day it stays the
    same if the clock is set.
    """
    if not Path("/proc/self/stat").is_file():
        import psutil

        return psutil.Process(pid).create_time() if psutil.pid_exists(pid) else None
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            # the fields follow the command's name, which is in parentheses and may hold any character
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), counted after the name
