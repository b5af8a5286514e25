"""Who works at a place, for scorers on several machines: told in a file there that its holder renews, and
that runs out with it.

    lease/<number>.json     who holds it and until when; the highest number counts, each is put by one alone

A lease keeps two scorers from doing the same work twice. It is not what keeps labels single: publishing is,
whoever holds the lease.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.storage.filesystem import canonical_json
from pipeline.storage.object_store import Store

LASTS_S = 120.0  # after it was renewed last; clocks of machines that share a place must not differ by as much

RENEWALS = 4  # in that time

FOLDER = "lease"

KEY = re.compile(rf"{FOLDER}/(\d{{8}})\.json")


@dataclass(frozen=True)
class Holding:
    """What a lease's file says."""

    host: str  # for people
    machine: str  # a start of a machine, and what sees the same processes on it
    pid: int
    process_started_s: float  # a number of a process is given again
    until_s: float

    @property
    def over(self) -> bool:
        """Whether it ran out, was given back, or its holder is a process of this machine that is no more."""
        return self.until_s < time.time() or (self.machine == this_machine() and not self._alive())

    def _alive(self) -> bool:
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started_s) < 1
        except psutil.NoSuchProcess:
            return False


class Lease:
    """Held while it is entered. RetryableError on entering: another holds it, and renews it."""

    def __init__(self, store: Store, say: Callable[[str], None], lasts_s: float = LASTS_S) -> None:
        self.store, self.say, self.lasts_s = store, say, lasts_s
        self.number, self.lost = 0, False
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew_on, daemon=True)

    def __enter__(self) -> "Lease":
        told: Holding | None = None
        while not self._taken():
            held = self._newest()[1]
            if held is None or held.over:
                continue
            if told is None:
                told = held
                self.say(
                    f"  {held.host}, process {held.pid}, scores into {self.store.place}; waiting to see "
                    "whether it still does"
                )
            elif held != told:
                raise RetryableError(
                    f"{held.host}, process {held.pid}, scores into {self.store.place}; wait for it and "
                    "run the same command again"
                )
            time.sleep(self.lasts_s / RENEWALS / 10)
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._renewing.join()
        if not self.lost:
            # the store is away: it runs out by itself, and what the run ends with is what counts
            with contextlib.suppress(OSError, RelevanceError):
                self._put(0.0)

    def check(self) -> None:
        """RetryableError: it ran out, as where the store was away for long, and another took it."""
        if self.lost:
            raise RetryableError(
                f"another took over the scoring into {self.store.place}; run the same command again when "
                "it is through"
            )

    def _newest(self) -> tuple[int, Holding | None]:
        """The highest number, and what it says; (0, None): there is none."""
        numbers = [int(found[1]) for entry in self.store.list(FOLDER) if (found := KEY.fullmatch(entry.key))]
        if not numbers:
            return 0, None
        key = key_of(max(numbers))
        try:
            return max(numbers), Holding(**json.loads(self.store.get(key)))
        except FileNotFoundError:  # one with a higher number removed it
            return self._newest()
        except (ValueError, TypeError) as error:
            remedy = "see that nobody scores there, then delete it"
            raise DamagedInputError(
                f"{self.store.place}/{key} says nothing of a lease ({error}); {remedy}"
            ) from error

    def _taken(self) -> bool:
        """Whether it is ours now."""
        number, held = self._newest()
        if held is not None and not held.over:
            return False
        self.number = number + 1
        if not self.store.put_if_absent(key_of(self.number), self._content(time.time() + self.lasts_s)):
            return False
        if self._newest()[0] != self.number:  # so slow that others had it and gave it back in between
            self.store.delete(key_of(self.number))
            return False
        if self.store.put_if_absent(key_of(self.number), b"{}"):
            told = (
                f"{self.store.place} replaces what is there though it is asked not to, so two scorers "
                "would label rows twice"
            )
            raise ConfigError(f"{told}; use a store that keeps to If-None-Match")
        self.store.delete(key_of(number - 1))
        return True

    def _renew_on(self) -> None:
        while not self._over.wait(self.lasts_s / RENEWALS):
            try:
                if self._newest()[0] != self.number:
                    self.lost = True
                    return
                self._put(time.time() + self.lasts_s)
            except (OSError, RelevanceError):  # the store is away; there is time for more tries
                continue

    def _put(self, until_s: float) -> None:
        self.store.put(key_of(self.number), self._content(until_s))

    def _content(self, until_s: float) -> bytes:
        me = Holding(
            socket.gethostname(), this_machine(), os.getpid(), psutil.Process().create_time(), until_s
        )
        return canonical_json(asdict(me)).encode()


def this_machine() -> str:
    """Differs between containers and after a restart, where host names do not."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return (
        f"{boot.read_text().strip()}-{Path('/proc/self/ns/pid').stat().st_ino}"
        if boot.is_file()
        else socket.gethostname()
    )


def key_of(number: int) -> str:
    """Where a lease's file lies."""
    return f"{FOLDER}/{number:08d}.json"
