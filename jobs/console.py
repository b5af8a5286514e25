"""Terminal output of a command: messages and progress on stderr, results on stdout.

The output of libraries goes to a file.
"""

import contextlib
import ctypes
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from jobs.environment import open_output
from pipeline.escaping import escape_invisible
from pipeline.runtime.progress import ProgressBar
from pipeline.runtime.run_log import OUR_PACKAGES, OUTPUT_LOGGER, message_text
from pipeline.storage.filesystem import open_to_append
from pipeline.uris import hide_credentials

if TYPE_CHECKING:
    import rich.progress

LINE_EVERY_S = 5.0  # between progress lines where stderr is no terminal
TABLE_COLUMNS = 10_000  # so wide that no line is wrapped: programs read them

logger = logging.getLogger(__name__)
output_logger = logging.getLogger(OUTPUT_LOGGER)  # recorded, and shown by no console handler


class Console:
    """Streams of a command. Keeps the real ones when the process's own are redirected to a file."""

    def __init__(self, err: IO[str] | None = None, out: IO[str] | None = None) -> None:
        self.err = err or sys.stderr
        self.out = out or sys.stdout
        self.live: rich.progress.Progress | None = None  # bars on a terminal

    def say(self, *lines: str) -> None:
        """Print lines of a message on stderr, above live bars if there are any.

        A line break inside a line is spelled out: the text of others begins no line.
        """
        text = _join_lines(lines)
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, file=self.err, flush=True)

    def result(self, *lines: str) -> None:
        """Print lines of a result on stdout, as `say` does, and record them in the log."""
        print(_join_lines(lines), file=self.out, flush=True)
        output_logger.info("%s", "\n".join(lines))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows of cells with aligned columns, as a result."""
        self.result(*aligned(rows))

    @contextlib.contextmanager
    def track(
        self, description: str, total: int | None, unit: str, initial: int = 0
    ) -> Iterator[ProgressBar]:
        """Open a bar: see `pipeline.runtime.progress.Progress`. It appears at its first update."""
        bar = _TerminalBar if self.err.isatty() else _LineBar
        opened = bar(self, description, total, unit, initial)
        try:
            yield opened
        finally:
            opened.close()


def _join_lines(lines: Sequence[str]) -> str:
    return "\n".join(escape_invisible(line, keep="\t") for line in lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with aligned columns."""
    import rich.console
    import rich.table
    import rich.text

    table = rich.table.Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(rich.text.Text(escape_invisible(cell)) for cell in row))
    text = io.StringIO()
    rich.console.Console(file=text, width=TABLE_COLUMNS).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


class _LineBar:
    """A log line every few seconds: elements done, rate, time left."""

    def __init__(
        self, console: Console, description: str, total: int | None, unit: str, initial: int
    ) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self.initial = initial
        self.note = ""
        self.is_complete = False
        self.started_s: float | None = None  # None until the first update, and once the bar is closed
        self.shown_s = 0.0

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        now_s = time.monotonic()
        if self.is_complete:
            return
        if self.started_s is None:
            self.started_s = self.shown_s = now_s
        self.done, self.note = done, note
        self.total = self.total if total is None else total
        if self.total is not None and done >= self.total:
            self.is_complete = True
            self.close()
        elif now_s - self.shown_s >= LINE_EVERY_S:
            self._show(now_s)

    def close(self) -> None:
        if self.started_s is not None:
            self._show(time.monotonic())
            self.started_s = None

    def _show(self, now_s: float) -> None:
        self.shown_s = now_s
        assert self.started_s is not None
        rate = max(self.done - self.initial, 0) / max(now_s - self.started_s, 1e-6)
        if self.total is None:
            amount, left = f"{self.done:,} {self.unit}", ""
        else:
            amount = f"{self.done:,}/{self.total:,} {self.unit}"
            left = f"  {(self.total - self.done) / rate:.0f} s left" if rate > 0 else "  time left unknown"
        text = f"  {self.description} {amount}  {rate:.1f}/s{left}"
        logger.info("%s", f"{text}  {self.note}".rstrip())


class _TerminalBar:
    """A progress bar on a terminal, drawn by rich."""

    def __init__(
        self, console: Console, description: str, total: int | None, unit: str, initial: int
    ) -> None:
        self.console, self.description, self.total = console, description, total
        self.unit, self.initial = unit, initial
        self.task: Any = None
        self.started_s = 0.0

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self.total = self.total if total is None else total
        if self.task is None:
            self._open()
        assert self.console.live is not None
        new = done - self.initial
        rate = new / max(time.monotonic() - self.started_s, 1e-6)
        self.console.live.update(
            self.task,
            completed=new,
            total=self._remaining(),
            note=note,
            amount=self._amount(done),
            rate=f"{rate:.1f}/s",
        )

    def close(self) -> None:
        if self.task is None:
            return
        live = self.console.live
        assert live is not None
        live.stop_task(self.task)
        self.task = None
        if all(task.stop_time is not None for task in live.tasks):
            live.stop()
            self.console.live = None

    def _open(self) -> None:
        import rich.console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.console.live is None:
            self.console.live = Progress(
                TextColumn("  {task.description} {task.fields[amount]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=rich.console.Console(file=self.console.err),
            )
            self.console.live.start()
        self.task = self.console.live.add_task(
            self.description, total=self._remaining(), note="", rate="", amount=self._amount(self.initial)
        )
        self.started_s = time.monotonic()

    def _remaining(self) -> int | None:
        return None if self.total is None else self.total - self.initial

    def _amount(self, done: int) -> str:
        return f"{done:,}/{self.total:,} {self.unit}" if self.total is not None else f"{done:,} {self.unit}"


class ConsoleHandler(logging.Handler):
    """Show the messages of this project's modules as plain text on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__(level=logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message as one line, below the traceback of a defect."""
        if record.exc_info:
            traceback = hide_credentials(logging.Formatter().formatException(record.exc_info))
            self.console.say(*traceback.split("\n"))
        self.console.say(hide_credentials(message_text(record)))


@contextlib.contextmanager
def messages_on(console: Console) -> Iterator[None]:
    """Show the messages that this project's modules log, INFO and above, on a console."""
    handler = ConsoleHandler(console)
    loggers = [logging.getLogger(package) for package in OUR_PACKAGES]
    kept = [(list(logger.handlers), logger.level) for logger in loggers]
    for package_logger in loggers:
        package_logger.handlers = [handler]
        package_logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for package_logger, (handlers, level) in zip(loggers, kept, strict=True):
            package_logger.handlers = handlers
            package_logger.setLevel(level)


@contextlib.contextmanager
def libraries_in(log_path: Path) -> Iterator[Console]:
    """Redirect the process's stdout and stderr to a file, C code and child processes included.

    Yields:
        A console on the real streams.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    flush_streams()
    kept = os.dup(1), os.dup(2)
    log = open_to_append(log_path)
    streams = [open_output(os.dup(fd), closefd=True) for fd in kept]
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
    """Flush the buffers of Python and C, so that earlier output does not go to the new target."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
