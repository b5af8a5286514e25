"""Structured log of one command: JSON lines, written by the command and by its Ray workers.

Every line is one object: time, level, run_id, process, work_unit, logger, message, and exception if there is
one. Processes on several machines append to the same file, one write per line.
"""

import contextlib
import contextvars
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.escaping import escape_invisible
from pipeline.storage.filesystem import open_to_append
from pipeline.uris import hide_credentials

OUR_PACKAGES = ("models", "pipeline", "validation", "jobs")
OUTPUT_LOGGER = "relevance.output"  # what a command prints on stdout

_work_unit: contextvars.ContextVar[str | None] = contextvars.ContextVar("work_unit", default=None)


@dataclass(frozen=True)
class RunLog:
    """Id and log file of a command, passed to its workers."""

    run_id: str
    path: Path

    @property
    def libraries_path(self) -> Path:
        """File of the libraries' output."""
        return self.path.with_suffix(".libraries.log")

    @classmethod
    def from_json(cls, value: Mapping[str, str] | None) -> "RunLog | None":
        """Parse the JSON form."""
        return None if value is None else cls(value["run_id"], Path(value["path"]))

    def to_json(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"run_id": self.run_id, "path": str(self.path)}


def new_run_id() -> str:
    """Return an id whose text order is the order of time: UTC to the millisecond, plus a random part."""
    now_ns = time.time_ns()
    second = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_ns // 10**9))
    return f"{second}-{now_ns // 10**6 % 1000:03d}-{secrets.token_hex(3)}"


def utc_text(seconds: float) -> str:
    """Return a Unix time as ISO 8601 text in UTC, to the millisecond."""
    milliseconds = int(seconds * 1000) % 1000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def message_text(record: logging.LogRecord) -> str:
    """Return a record's message. A library's call with wrong arguments must not end the work it is about."""
    try:
        return record.getMessage()
    except Exception:
        return str(record.msg)


class JsonLinesHandler(logging.Handler):
    """Append records to a run's log as JSON lines."""

    def __init__(self, log: RunLog, process: str) -> None:
        """Open the log.

        Args:
            log: Run id and file.
            process: Name of this process in the log: "command", "rank 0", "actor 4f2a".
        """
        super().__init__(level=logging.INFO)
        self.log, self.process = log, process
        log.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = open_to_append(log.path)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk must not end the work that is logged."""
        line = escape_invisible(json.dumps(self._as_json(record), ensure_ascii=False)) + "\n"
        with contextlib.suppress(OSError):
            os.write(self.descriptor, line.encode("utf-8", errors="replace"))

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        super().close()

    def _as_json(self, record: logging.LogRecord) -> dict[str, Any]:
        line: dict[str, Any] = {
            "time": utc_text(record.created),
            "level": record.levelname.lower(),
            "run_id": self.log.run_id,
            "process": self.process,
            "work_unit": _work_unit.get(),
            "logger": record.name,
            "message": hide_credentials(message_text(record)),
        }
        if record.exc_info:
            line["exception"] = hide_credentials(logging.Formatter().formatException(record.exc_info))
        return line


@contextlib.contextmanager
def logging_to(log: RunLog | None, process: str) -> Iterator[None]:
    """Record this process's messages: INFO and above of our packages, WARNING and above of libraries.

    Without a log nothing is recorded.
    """
    if log is None:
        yield
        return
    handler = JsonLinesHandler(log, process)
    root = logging.getLogger()
    our_loggers = [logging.getLogger(name) for name in (*OUR_PACKAGES, OUTPUT_LOGGER)]
    levels = [logger.level for logger in our_loggers]
    root.addHandler(handler)
    for logger in our_loggers:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, level in zip(our_loggers, levels, strict=True):
            logger.setLevel(level)
        handler.close()


@contextlib.contextmanager
def log_work_unit(name: str) -> Iterator[None]:
    """Put the name of the work unit into every line that is logged inside the context."""
    token = _work_unit.set(name)
    try:
        yield
    finally:
        _work_unit.reset(token)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log, oldest first; half-written lines are left out."""
    lines = []
    content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for text in content.split("\n"):  # not splitlines: messages may hold U+2028 and the like
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines
