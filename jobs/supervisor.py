"""Parent process of a command: it outlives the command, and says what happened to one that died.

Ray ends the process of a command from C++ when its raylet or GCS dies, and the kernel kills it when memory
runs out. The command's Python code sees neither, so a parent process gives the sentence and the exit code.
"""

import contextlib
import contextvars
import ctypes
import json
import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jobs.environment import typed_command

if TYPE_CHECKING:
    from pipeline.runtime.run_record import RunRecord

logger = logging.getLogger(__name__)

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
# terminals and schedulers signal both processes: a signal that the command has got itself is not sent again
FORWARD_AFTER_S, SAME_SIGNAL_S = 0.5, 1.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of linux/prctl.h
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it

_reports: contextvars.ContextVar[int | None] = contextvars.ContextVar("reports", default=None)


def run_supervised(command: Callable[[], object]) -> NoReturn:
    """Run a command in a child process, and exit with its exit code; with that of an interruption if it died.

    The caller has set the signal handlers of the command. Processes that the command leaves are killed.
    """
    reports, signals = os.pipe(), os.pipe()
    supervisor = os.getpid()
    handled = (*FORWARDED, signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)  # kept for the process they are meant for
    _set_process_flag(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become children of this process
    pid = os.fork()
    if pid:
        for _, writer in (reports, signals):
            os.close(writer)
        raise SystemExit(_Supervisor(pid, reports[0], signals[0]).run(handled))
    _set_process_flag(PR_SET_CHILD_SUBREAPER, 0)
    _set_process_flag(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before the flag was set
        os.kill(os.getpid(), signal.SIGKILL)
    os.set_blocking(signals[1], False)
    signal.set_wakeup_fd(signals[1], warn_on_full_buffer=False)  # writes the number of each signal
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    _reports.set(reports[1])
    with _exit_code_reported():
        command()
    raise SystemExit(0)


def report_record(path: Path) -> None:
    """Name the run record that the supervisor closes if this process dies; without one, do nothing."""
    _report(record=str(path.absolute()))


def _report(**fact: Any) -> None:
    if (pipe := _reports.get()) is not None:
        os.write(pipe, f"{json.dumps(fact)}\n".encode())


@contextlib.contextmanager
def _exit_code_reported() -> Iterator[None]:
    """Report the exit code of a command that ends through Python, which has said why."""
    code: Any = 1
    try:
        yield
        code = 0
    except SystemExit as error:
        code = error.code or 0
        raise
    finally:
        _report(exit_code=code if isinstance(code, int) else 1)


def _set_process_flag(flag: int, value: int) -> None:
    ctypes.CDLL(None).prctl(flag, value, 0, 0, 0)


class _Supervisor:
    """Forwards signals to the command's process, waits for its end, and cleans up."""

    def __init__(self, pid: int, reports: int, command_signals: int) -> None:
        self.pid, self.reports, self.command_signals = pid, reports, command_signals
        self.command_received_s: dict[int, float] = {}  # time when the command got a signal, by its number

    def run(self, handled: tuple[signal.Signals, ...]) -> int:
        """Return the exit code for the command."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for handled_signal in handled:
            signal.signal(handled_signal, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        while (ended := self._reap()) is None:
            ready, _, _ = select.select([reader, self.command_signals], [], [])
            if self.command_signals in ready:
                self._read_command_signals()
            for number in os.read(reader, 1024) if reader in ready else b"":
                if number != signal.SIGCHLD and not self._command_got_signal(number):
                    os.kill(self.pid, number)
        _kill_children()
        facts = self._read_reports()
        if "exit_code" in facts:
            return int(facts["exit_code"])
        return _report_death(ended, facts.get("record"))

    def _reap(self) -> int | None:
        """Return the command's exit code, negative for a signal; None while it runs."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    return os.waitstatus_to_exitcode(ended[1])
        return None

    def _command_got_signal(self, number: int) -> bool:
        """Return whether the command has got a signal by itself, or gets it now."""
        if select.select([self.command_signals], [], [], FORWARD_AFTER_S)[0]:
            self._read_command_signals()
        return time.monotonic() - self.command_received_s.get(number, -math.inf) < SAME_SIGNAL_S

    def _read_command_signals(self) -> None:
        self.command_received_s |= dict.fromkeys(os.read(self.command_signals, 1024), time.monotonic())

    def _read_reports(self) -> dict[str, Any]:
        """Return what the command has reported, the last of each name."""
        os.set_blocking(self.reports, False)  # a process that it left may hold the pipe open
        text = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.reports, 65536):
                text += part
        facts: dict[str, Any] = {}
        for line in text.splitlines():
            facts |= json.loads(line)
        return facts


def _kill_children() -> None:
    """Kill what a command left; orphans of a killed process become children of this one in their turn."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):
        while pids := [int(pid) for pid in children.read_text(encoding="ascii").split()]:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)


def _report_death(ended: int, record_path: str | None) -> int:
    """Log how a command died, close its record, and return the exit code."""
    from jobs.console import Console, messages_on
    from jobs.run_texts import repetition_exit_code
    from pipeline.errors import RelevanceError
    from pipeline.runtime.run_log import RunLog, logging_to
    from pipeline.runtime.run_record import read_record

    if sys.stderr.isatty():
        sys.stderr.write(f"\r{SHOW_CURSOR}\n")
    with messages_on(Console()), contextlib.ExitStack() as stack:
        command, reason = typed_command(), _describe_death(ended, None)
        try:
            if record_path:
                record = read_record(Path(record_path))
                stack.enter_context(logging_to(RunLog(record.run_id, Path(record.log)), "supervisor"))
                command, reason = record.command, _describe_death(ended, record)
                _close(record, Path(record_path), reason)
        except (OSError, RelevanceError) as error:  # a full disk must not hide the reason
            logger.warning("run record not closed: %s", error)
        logger.error("error: %s", reason)
    return repetition_exit_code(command)


def _close(record: "RunRecord", path: Path, reason: str) -> None:
    from jobs.run_texts import find_evidence, repetition_exit_code
    from pipeline.runtime.run_record import write_closed

    evidence = (*find_evidence(record), str(_libraries_log(record)))
    exit_code = repetition_exit_code(record.command)
    write_closed(path, replace(record, evidence=evidence), exit_code, reason)


def _describe_death(ended: int, record: "RunRecord | None") -> str:
    from jobs.run_texts import describe_position, repetition_advice

    cause = f"exit code {ended}" if ended >= 0 else signal.Signals(-ended).name
    position = describe_position(record) if record else ""
    advice = repetition_advice(record.command if record else typed_command())
    return f"command died without a result{position}: {cause}; {_likely_cause(ended, record)}; {advice}"


def _likely_cause(ended: int, record: "RunRecord | None") -> str:
    if ended == -signal.SIGKILL:
        return "the kernel kills processes when memory runs out"
    if ended >= 0 or ended == -signal.SIGABRT:
        return "Ray ends a command whose raylet or GCS died"
    if -ended in CRASHES:
        log = f", see {_libraries_log(record)}" if record else ""
        return f"native code of a library crashed{log}"
    return "another process sent the signal"


def _libraries_log(record: "RunRecord") -> Path:
    from pipeline.runtime.run_log import RunLog

    return RunLog(record.run_id, Path(record.log)).libraries_path
