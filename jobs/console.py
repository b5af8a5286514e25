"""What people see: progress on stderr with rate and time left, one json line on stdout, third-party chatter
in a file.
"""

import contextlib
import ctypes
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

LINE_EVERY_S = 5.0  # between progress lines where stderr is no terminal


class Console:
    """The command's own voice. Keeps its streams when the process's own are turned to a log file."""

    def __init__(self, err: IO[str] | None = None, out: IO[str] | None = None) -> None:
        self.err = err or sys.stderr
        self.out = out or sys.stdout

    def say(self, text: str = "") -> None:
        """A line for people."""
        print(text, file=self.err, flush=True)

    def result(self, text: str) -> None:
        """A line for programs and for what the command was asked to print."""
        print(text, file=self.out, flush=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of cells, their columns aligned, as results."""
        for line in aligned(rows):
            self.result(line)

    @contextlib.contextmanager
    def track(self, description: str, total: int | None, unit: str, already: int = 0) -> Iterator["LateLine"]:
        """Open a progress line that appears at its first update."""
        line = LateLine(self, description, unit, total, already)
        try:
            yield line
        finally:
            line.finish()

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, unit: str, already: int = 0) -> Iterator["Progress"]:
        """A live line: done of total, rate, time left; of a stream without end in sight, done and rate.
        `already` were done earlier and do not count towards the rate.
        """
        progress = Progress(self, what, total, unit, already)
        try:
            yield progress
        finally:
            progress.finish()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


class Progress:
    """One line that moves on a terminal; a new line every few seconds elsewhere."""

    def __init__(self, console: Console, what: str, total: int | None, unit: str, already: int) -> None:
        self.console, self.what, self.total, self.unit, self.already = console, what, total, unit, already
        self.live = console.err.isatty()
        self.started_s = self.shown_s = time.monotonic()
        self.done = already

    def update(self, done: int, note: str = "") -> None:
        """Set how many are done and show it if it is time."""
        now = time.monotonic()
        self.done = done
        if now - self.shown_s >= (0.2 if self.live else LINE_EVERY_S):
            self.shown_s = now
            self._show(now, note)

    def make_room(self) -> None:
        """Clear a live line for text that follows; it is drawn again below that."""
        if self.live:
            print("\r\x1b[K", end="", file=self.console.err, flush=True)

    def finish(self) -> None:
        """Close the line."""
        self._show(time.monotonic(), "")
        if self.live:
            print(file=self.console.err, flush=True)

    def _show(self, now: float, note: str) -> None:
        rate = max(self.done - self.already, 0) / max(now - self.started_s, 1e-6)
        if self.total is None:
            text = f"  {self.what} {self.done:,} {self.unit}  {rate:.1f}/s  {note}".rstrip()
        else:
            left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else "time left unknown"
            done = f"{self.done:,}/{self.total:,}"
            text = f"  {self.what} {done} {self.unit}  {rate:.1f}/s  {left}  {note}".rstrip()
        print(
            f"\r\x1b[K{text}" if self.live else text,
            end="" if self.live else "\n",
            file=self.console.err,
            flush=True,
        )


class LateLine:
    """Progress line that opens at its first update: no news, no line."""

    def __init__(
        self, console: Console, what: str, unit: str, total: int | None = None, already: int = 0
    ) -> None:
        self.console, self.what, self.unit, self.total, self.already = console, what, unit, total, already
        self.line: Progress | None = None

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Set the number of elements done and, if it changed, of all."""
        self.total = self.total if total is None else total
        if self.line is None:
            self.line = Progress(self.console, self.what, self.total, self.unit, self.already)
        self.line.total = self.total
        self.line.update(done, note)
        if self.total is not None and done >= self.total:
            self.finish()

    def finish(self) -> None:
        """Close the line if it was opened."""
        if self.line is not None:
            self.line.finish()
            self.line = None


class ConsoleHandler(logging.Handler):
    """Show the messages of this project's modules as plain text on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__(level=logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message."""
        self.console.say(record.getMessage())


@contextlib.contextmanager
def messages_on(console: Console) -> Iterator[None]:
    """Show the messages that this project's modules log, INFO and above, on a console."""
    handler = ConsoleHandler(console)
    loggers = [logging.getLogger(package) for package in ("models", "pipeline", "validation", "jobs")]
    kept = [(list(logger.handlers), logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (handlers, level) in zip(loggers, kept, strict=True):
            logger.handlers = handlers
            logger.setLevel(level)


@contextlib.contextmanager
def third_parties_in(log_path: Path) -> Iterator[Console]:
    """Turn the process's stdout and stderr, C level and child processes included, to a log file; yield a
    console on the real ones.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    flush_streams()
    kept = os.dup(1), os.dup(2)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    streams: list[Any] = [os.fdopen(os.dup(fd), "w", buffering=1) for fd in kept]
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield Console(err=streams[1], out=streams[0])
    finally:
        flush_streams()
        for fd, original in zip((1, 2), kept, strict=True):
            os.dup2(original, fd)
            os.close(original)
        os.close(log)
        for stream in streams:
            stream.close()


def flush_streams() -> None:
    """Empty Python's buffers and C's, or what they hold would come out where stdout points later, after a
    command's last line.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
