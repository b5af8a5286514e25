"""One run of a command: its id, console, log and record."""

import contextlib
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.console import Console
from pipeline.runtime.progress import ProgressBar
from pipeline.runtime.run_log import RunLog
from pipeline.runtime.run_record import BarState, RunRecorder
from pipeline.uris import hide_argument

logger = logging.getLogger(__name__)


class CommandRun:
    """Results, progress and run record of one run of a command.

    It is the `Progress` that functions of the packages take. Messages go through `logging`.
    """

    def __init__(
        self, console: Console, recorder: RunRecorder | None = None, config_arguments: Sequence[str] = ()
    ) -> None:
        """Bind a console and a record.

        Args:
            console: Where results and bars go.
            recorder: Writer of the run record; None for commands that only read runs or send a job.
            config_arguments: `--config` and `--set` as they were given, for suggested commands.
        """
        self.console, self.recorder = console, recorder
        self.config_arguments = tuple(config_arguments)

    @property
    def id(self) -> str:
        """The run id; empty without a run record."""
        return self.recorder.log.run_id if self.recorder else ""

    @property
    def log(self) -> RunLog | None:
        """The command's log, which its workers write to as well; None without a run record."""
        return self.recorder.log if self.recorder else None

    def result(self, *lines: str) -> None:
        """Print lines of a result on stdout."""
        self.console.result(*lines)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows of cells with aligned columns on stdout."""
        self.console.table(rows)

    def begin_stage(self, title: str) -> None:
        """Announce a stage of a command that has several."""
        logger.info("%s", title)
        if self.recorder:
            self.recorder.update(stage=title, progress={})

    def set_counts(self, **counts: Any) -> None:
        """Set counts in the record: units, rows, labels, steps, ..."""
        if self.recorder:
            self.recorder.set_counts(**counts)

    def add_evidence(self, *paths: Path) -> None:
        """Name files in the record that show what a failed part was doing."""
        if self.recorder:
            self.recorder.add_evidence(*paths)

    @contextlib.contextmanager
    def track(
        self, description: str, total: int | None, unit: str, initial: int = 0
    ) -> Iterator[ProgressBar]:
        """Open a bar on the console and show its state in the record too."""
        with self.console.track(description, total, unit, initial) as bar:
            yield _RecordedBar(self.recorder, bar, description, total, unit)

    def suggest(self, command: str, *arguments: str) -> str:
        """Return a command line with this run's config, for the user to type next."""
        words = ["relevance", command, *self.config_arguments, *arguments]
        return shlex.join(_printable(word) for word in words)


class _RecordedBar:
    """A bar whose state is also in the run record."""

    def __init__(
        self, recorder: RunRecorder | None, bar: ProgressBar, description: str, total: int | None, unit: str
    ) -> None:
        self.recorder, self.bar, self.description = recorder, bar, description
        self.total, self.unit = total, unit

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self.total = self.total if total is None else total
        self.bar.update(done, note, total)
        if self.recorder:
            self.recorder.set_progress(self.description, BarState(done, self.total, self.unit))


def command_line() -> tuple[str, ...]:
    """Return the arguments this process was started with, without accounts."""
    return tuple(_printable(argument) for argument in sys.argv[1:])


def _printable(argument: str) -> str:
    """Return an argument without accounts and without bytes that are not UTF-8."""
    return hide_argument(argument.encode("utf-8", errors="replace").decode())
