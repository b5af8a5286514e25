"""Lease on a location: keeps scorers on several machines from doing the same work twice.

    lease/<number>.json     the holder; the highest number counts, one holder creates each

The holder renews its lease by writing it again. A lease whose content stays the same for DURATION_S by the
observer's own clock belongs to a dead holder: clocks of two machines are never compared. Without a lease each
work unit would still be published once, but two plans might label a row_id that several files hold.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass

import tenacity

from models.files import parse_json
from models.processes import has_ended, machine_id, process_start_s
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.storage.filesystem import canonical_json
from pipeline.storage.object_store import Store

DURATION_S = 120.0  # from the last renewal

RENEWALS_PER_DURATION = 4

POLLS_PER_RENEWAL = 10

FOLDER = "lease"

KEY_PATTERN = re.compile(rf"{FOLDER}/(\d{{8,18}})\.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseRecord:
    """Content of a lease file."""

    host: str  # for messages
    machine: str  # `machine_id` of the holder
    pid: int
    process_start_s: float  # `process_start_s` of the holder; distinguishes two processes with the same pid
    until_s: float  # 0 once the lease is released; else for people, as clocks differ
    run_id: str = ""  # of the command that holds the lease
    renewals: int = 0  # makes every renewal a different content

    @property
    def is_released(self) -> bool:
        """Return True if the holder gave the lease back, or was a process of this machine that has ended."""
        if self.until_s == 0:
            return True
        return self.machine == machine_id() and has_ended(self.pid, self.process_start_s)

    def to_json(self) -> bytes:
        """Return the content of the lease file."""
        return canonical_json(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> LeaseRecord | None:
        """Parse the content of a lease file; None if it is no record of a holder."""
        with contextlib.suppress(ValueError, TypeError):
            record = cls(**parse_json(content))
            if 0 < record.pid < 2**31 and math.isfinite(record.process_start_s):
                return record
        return None


@dataclass(frozen=True)
class _Observation:
    """Lease file as an observer saw it."""

    number: int
    content: bytes
    since_s: float  # on the observer's monotonic clock

    def describe_holder(self) -> str:
        record = LeaseRecord.from_json(self.content)
        if record is None:
            return "an unknown process"
        return f"process {record.pid} on {record.host}" + (f", run {record.run_id}" if record.run_id else "")


class Lease:
    """Context manager that holds the lease of a store.

    Raises:
        RetryableError: On entering: another process holds the lease and renews it.
        ConfigError: On entering: the store ignores the condition "create only if absent".
        DamagedInputError: On entering: something that is not a file has the name of a lease file.
    """

    def __init__(self, store: Store, run_id: str = "", duration_s: float = DURATION_S) -> None:
        self.store, self.run_id, self.duration_s = store, run_id, duration_s
        self.number, self.is_lost, self._renewals = 0, False, 0
        self._observed: _Observation | None = None  # lease of another holder
        self._released = threading.Event()
        self._renewal_thread = threading.Thread(target=self._renew_until_released, daemon=True)

    def __enter__(self) -> Lease:
        poll_s = self.duration_s / RENEWALS_PER_DURATION / POLLS_PER_RENEWAL
        acquire = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda is_acquired: not is_acquired),
            wait=tenacity.wait_fixed(poll_s),
        )
        acquire(self._acquire_from_dead_holder)
        self._renewal_thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._renewal_thread.join()
        if not self.is_lost:
            # an unreachable store must not hide the error of the run; the lease expires by itself
            with contextlib.suppress(OSError, RelevanceError):
                self.store.put(lease_key(self.number), self._record_json(is_released=True))

    def check(self) -> None:
        """Raise RetryableError if the lease expired, as after a long outage, and another process took it."""
        if self.is_lost:
            raise RetryableError(
                f"lease of {self.store.location} was lost to another process; run the same command again "
                "when that process has finished"
            )

    def _acquire_from_dead_holder(self) -> bool:
        """Acquire the lease; return False to ask again.

        Raises:
            RetryableError: The lease changed since the first call, so its holder is alive.
        """
        number, content = self._read_newest()
        record = LeaseRecord.from_json(content)
        if number == 0 or (record is not None and record.is_released):
            return self._create(number + 1)
        if self._observed is None:
            self._observed = _Observation(number, content, time.monotonic())
            logger.info(
                "%s is leased by %s; waiting up to %.0f s to see whether the lease is renewed",
                self.store.location,
                self._observed.describe_holder(),
                self.duration_s,
            )
        elif (number, content) != (self._observed.number, self._observed.content):
            raise RetryableError(
                f"{self.store.location} is leased by {_Observation(number, content, 0.0).describe_holder()}; "
                "wait for that process and run the same command again"
            )
        elif time.monotonic() - self._observed.since_s > self.duration_s:
            return self._create(number + 1)
        return False

    @tenacity.retry(retry=tenacity.retry_if_exception_type(FileNotFoundError))  # the next holder removed it
    def _read_newest(self) -> tuple[int, bytes]:
        """Return the highest lease number and the content of its file; (0, b"") if there is no lease."""
        matches = [KEY_PATTERN.fullmatch(entry.key) for entry in self.store.list(FOLDER)]
        number = max((int(match[1]) for match in matches if match), default=0)
        return (number, self.store.get(lease_key(number))) if number else (0, b"")

    def _create(self, number: int) -> bool:
        """Create the lease file after the newest one; return False if another process was faster."""
        if not self.store.put_if_absent(lease_key(number), self._record_json()):
            if self._read_newest()[0] < number:
                raise DamagedInputError(
                    f"{self.store.location}/{lease_key(number)} is not a file; remove it and run the same "
                    "command again"
                )
            return False
        if self._read_newest()[0] != number:  # another process has taken and released the lease
            self.store.delete(lease_key(number))
            return False
        if self.store.put_if_absent(lease_key(number), b"{}"):
            raise ConfigError(
                f"{self.store.location} overwrites existing files despite If-None-Match, so two scorers "
                "would label rows twice; use a store that supports If-None-Match"
            )
        self.number = number
        self.store.delete(lease_key(number - 1))
        return True

    def _renew_until_released(self) -> None:
        while not self._released.wait(self.duration_s / RENEWALS_PER_DURATION):
            try:
                if self._read_newest()[0] != self.number:
                    self.is_lost = True
                    return
                self._renewals += 1
                self.store.put(lease_key(self.number), self._record_json())
            except (OSError, RelevanceError):  # the store is unreachable; the next renewal may succeed
                continue

    def _record_json(self, is_released: bool = False) -> bytes:
        pid, until_s = os.getpid(), 0.0 if is_released else time.time() + self.duration_s
        return LeaseRecord(
            host=socket.gethostname(),
            machine=machine_id(),
            pid=pid,
            process_start_s=process_start_s(pid) or 0.0,
            until_s=until_s,
            run_id=self.run_id,
            renewals=self._renewals,
        ).to_json()


def lease_key(number: int) -> str:
    """Return the key of a lease file."""
    return f"{FOLDER}/{number:08d}.json"
