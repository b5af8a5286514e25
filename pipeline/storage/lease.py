"""Lease on a location: keeps scorers on several machines from doing the same work twice.

    lease/<number>.json     holder and expiry time; the highest number counts, one holder creates each

The holder renews its lease, so the lease expires soon after the holder dies. A lease only saves work:
publishing keeps labels unique even without one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import tenacity

from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.storage.filesystem import canonical_json
from pipeline.storage.object_store import Store

DURATION_S = 120.0  # from the last renewal; clocks of machines that share a location must differ by less

RENEWALS_PER_DURATION = 4

POLLS_PER_RENEWAL = 10

FOLDER = "lease"

KEY_PATTERN = re.compile(rf"{FOLDER}/(\d{{8}})\.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseRecord:
    """Content of a lease file."""

    host: str  # for messages
    machine: str  # `machine_id` of the holder
    pid: int
    process_started_s: float  # distinguishes two processes with the same pid
    until_s: float
    run_id: str = ""  # of the command that holds the lease

    @property
    def is_expired(self) -> bool:
        """Return True if the time is over, or if the holder was a process of this machine that has ended."""
        return self.until_s < time.time() or (self.machine == machine_id() and not self._holder_is_alive())

    def to_json(self) -> bytes:
        """Return the content of the lease file."""
        return canonical_json(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> LeaseRecord:
        """Parse the content of a lease file; ValueError or TypeError if it is no lease."""
        return cls(**json.loads(content))

    def _holder_is_alive(self) -> bool:
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started_s) < 1
        except psutil.NoSuchProcess:
            return False


class Lease:
    """Context manager that holds the lease of a store.

    Raises:
        RetryableError: On entering: another process holds the lease and renews it.
        ConfigError: On entering: the store ignores the condition "create only if absent".
        DamagedInputError: On entering: the newest lease file is unreadable.
    """

    def __init__(self, store: Store, run_id: str = "", duration_s: float = DURATION_S) -> None:
        self.store, self.run_id, self.duration_s = store, run_id, duration_s
        self.number, self.is_lost = 0, False
        self._observed_holder: LeaseRecord | None = None
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
                self._put(until_s=0.0)

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
            RetryableError: The holder renewed its lease since the first call, so it is alive.
        """
        if self._acquire():
            return True
        holder = self._read_newest()[1]
        if holder is None or holder.is_expired:
            return False
        if self._observed_holder is None:
            self._observed_holder = holder
            logger.info(
                "%s is leased by process %d on %s; waiting to see whether the lease is renewed",
                self.store.location,
                holder.pid,
                holder.host,
            )
        elif holder != self._observed_holder:
            raise RetryableError(
                f"{self.store.location} is leased by process {holder.pid} on {holder.host}; wait for that "
                "process and run the same command again"
            )
        return False

    @tenacity.retry(retry=tenacity.retry_if_exception_type(FileNotFoundError))  # the next holder removed it
    def _read_newest(self) -> tuple[int, LeaseRecord | None]:
        """Return the highest lease number and its record; (0, None) if there is no lease."""
        matches = [KEY_PATTERN.fullmatch(entry.key) for entry in self.store.list(FOLDER)]
        number = max((int(match[1]) for match in matches if match), default=0)
        if number == 0:
            return 0, None
        key = lease_key(number)
        try:
            return number, LeaseRecord.from_json(self.store.get(key))
        except (ValueError, TypeError) as error:
            raise DamagedInputError(
                f"{self.store.location}/{key} is not a lease file ({error}); check that no scorer runs "
                "there, then delete it"
            ) from error

    def _acquire(self) -> bool:
        """Create the next lease file; return False if another process holds the lease."""
        newest_number, holder = self._read_newest()
        if holder is not None and not holder.is_expired:
            return False
        self.number = newest_number + 1
        content = self._record(time.time() + self.duration_s).to_json()
        if not self.store.put_if_absent(lease_key(self.number), content):
            return False
        if self._read_newest()[0] != self.number:  # another process has taken and released the lease
            self.store.delete(lease_key(self.number))
            return False
        if self.store.put_if_absent(lease_key(self.number), b"{}"):
            raise ConfigError(
                f"{self.store.location} overwrites existing files despite If-None-Match, so two scorers "
                "would label rows twice; use a store that supports If-None-Match"
            )
        self.store.delete(lease_key(newest_number))
        return True

    def _renew_until_released(self) -> None:
        while not self._released.wait(self.duration_s / RENEWALS_PER_DURATION):
            try:
                if self._read_newest()[0] != self.number:
                    self.is_lost = True
                    return
                self._put(time.time() + self.duration_s)
            except (OSError, RelevanceError):  # the store is unreachable; the next renewal may succeed
                continue

    def _put(self, until_s: float) -> None:
        self.store.put(lease_key(self.number), self._record(until_s).to_json())

    def _record(self, until_s: float) -> LeaseRecord:
        started_s = psutil.Process().create_time()
        return LeaseRecord(socket.gethostname(), machine_id(), os.getpid(), started_s, until_s, self.run_id)


def machine_id() -> str:
    """Return an id of this boot of the machine and its process namespace.

    It differs between containers and after a restart, where host names do not.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if not boot_id.is_file():
        return socket.gethostname()
    return f"{boot_id.read_text().strip()}-{Path('/proc/self/ns/pid').stat().st_ino}"


def lease_key(number: int) -> str:
    """Return the key of a lease file."""
    return f"{FOLDER}/{number:08d}.json"
