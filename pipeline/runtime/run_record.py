"""Run records: one JSON file per command, written when it starts, updated as it works, and closed at its end.

    <folder>/records/<run id>.json     the record
    <folder>/logs/<run id>.jsonl       the log, locked by the command as long as it lives

A killed command leaves `running` and an unlocked log. Readers see it as `died`.
"""

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedInputError
from pipeline.escaping import one_line
from pipeline.runtime.run_log import RunLog, utc_text
from pipeline.storage.filesystem import open_to_append, read_json, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
UPDATE_EVERY_S = 2.0  # between two writes of progress; each write costs two syncs
RUNNING, DONE, FAILED, DIED = "running", "done", "failed", "died"


@dataclass(frozen=True)
class BarState:
    """Progress of one bar: elements done, elements in all if known, their unit."""

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class RunRecord:
    """State of one command."""

    run_id: str
    command: str  # train, score, ...
    name: str | None  # the config's name; None for commands without a config
    arguments: tuple[str, ...]
    log: str
    host: str
    pid: int
    started_s: float  # Unix time
    updated_s: float
    state: str = RUNNING
    stage: str | None = None  # of a command of several stages
    progress: Mapping[str, BarState] = field(default_factory=dict)  # by the bar's description
    counts: Mapping[str, Any] = field(default_factory=dict)  # units, rows, labels, steps, ...
    evidence: tuple[str, ...] = ()  # files that show what a failed part was doing
    exit_code: int | None = None
    reason: str | None = None  # why the command failed
    next: str | None = None  # what the user can do about it

    @property
    def seconds(self) -> float:
        """Time from the start to the last update."""
        return self.updated_s - self.started_s

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        times = {"started_at": utc_text(self.started_s), "updated_at": utc_text(self.updated_s)}
        return {"format": FORMAT, **asdict(self), **times}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RunRecord":
        """Read the recorded form; KeyError or TypeError if it is not a record."""
        names = cls.__dataclass_fields__
        known = {name: value[name] for name in value if name in names}
        progress = {name: BarState(**bar) for name, bar in value["progress"].items()}
        return cls(
            **{
                **known,
                "progress": progress,
                "arguments": tuple(value["arguments"]),
                "evidence": tuple(value["evidence"]),
            }
        )


class RunRecorder:
    """Keep the record of this process's command up to date. Holds the log's lock while it is entered."""

    def __init__(self, folder: Path, run_id: str, command: str, name: str | None, arguments: tuple[str, ...]):
        self.log = RunLog(run_id, folder / "logs" / f"{run_id}.jsonl")
        self.path = folder / "records" / f"{run_id}.json"
        now_s = time.time()
        self.record = RunRecord(
            run_id=run_id,
            command=command,
            name=name,
            arguments=arguments,
            log=str(self.log.path),
            host=one_line(socket.gethostname()),
            pid=os.getpid(),
            started_s=now_s,
            updated_s=now_s,
        )
        self._log_lock = -1
        self._written_s = 0.0
        self._changes = threading.RLock()  # progress comes from a thread of its own

    def __enter__(self) -> "RunRecorder":
        self.log.path.parent.mkdir(parents=True, exist_ok=True)
        self._log_lock = open_to_append(self.log.path)
        fcntl.flock(self._log_lock, fcntl.LOCK_EX)
        write_json(self.path, self.record.to_json())
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._log_lock)

    def update(self, **changes: Any) -> None:
        """Change fields of the record and write it."""
        with self._changes:
            self.record = replace(self.record, **changes, updated_s=time.time())
            self._written_s = time.monotonic()
            try:
                write_json(self.path, self.record.to_json())
            except OSError as error:  # the work matters more than its record
                logger.warning("run record not written: %s (%s)", self.path, error)

    def set_counts(self, **counts: Any) -> None:
        """Set counts; written at most every UPDATE_EVERY_S seconds."""
        with self._changes:
            self._update_throttled(counts={**self.record.counts, **counts})

    def set_progress(self, description: str, bar: BarState) -> None:
        """Set the state of a bar; written at most every UPDATE_EVERY_S seconds."""
        with self._changes:
            self._update_throttled(progress={**self.record.progress, description: bar})

    def add_evidence(self, *paths: Path) -> None:
        """Name files that show what a failed part was doing."""
        with self._changes:
            evidence = tuple(dict.fromkeys([*self.record.evidence, *map(str, paths)]))
            if evidence != self.record.evidence:
                self.update(evidence=evidence)

    def _update_throttled(self, **changes: Any) -> None:
        if time.monotonic() - self._written_s >= UPDATE_EVERY_S:
            self.update(**changes)
        else:
            self.record = replace(self.record, **changes, updated_s=time.time())


def read_record(path: Path) -> RunRecord:
    """Read a record; its state is `died` if its process ended without closing it.

    Raises:
        DamagedInputError: The file is not a run record.
    """
    record = _parse_record(path)
    if record.state == RUNNING and not is_locked(Path(record.log)):
        record = _parse_record(path)  # it may have ended in between
        return replace(record, state=DIED) if record.state == RUNNING else record
    return record


def _parse_record(path: Path) -> RunRecord:
    try:
        return RunRecord.from_json(read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedInputError(f"run record damaged: {path} ({error!r}); delete it") from error


def write_closed(path: Path, record: RunRecord, exit_code: int, reason: str) -> None:
    """Write the record of a command that died as that of a failed one."""
    closed = replace(record, state=FAILED, exit_code=exit_code, reason=reason, updated_s=time.time())
    write_json(path, closed.to_json())


def read_records(folder: Path) -> list[RunRecord]:
    """Return the records below a run's folder, or directly in a work_dir, newest first.

    Damaged ones are left out with a warning.
    """
    records = []
    for path in sorted((folder / "records").glob("*.json"), reverse=True):
        try:
            records.append(read_record(path))
        except (DamagedInputError, OSError) as error:
            logger.warning("%s", error)
    return records


def read_all_records(work_dir: Path) -> list[RunRecord]:
    """Return the records of a work_dir and of the run folders in it, newest first."""
    folders = [work_dir, *(path for path in work_dir.iterdir() if path.is_dir())]
    records = [record for folder in folders for record in read_records(folder)]
    return sorted(records, key=lambda record: record.run_id, reverse=True)


def is_locked(path: Path) -> bool:
    """Return True if a process holds an exclusive lock on a file.

    It takes a shared lock for a moment; a command that starts in that moment waits for it.
    """
    try:
        file = path.open("rb")
    except OSError:
        return False
    with file, contextlib.suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
