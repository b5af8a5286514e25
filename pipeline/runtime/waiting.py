"""Locks of files, and log messages about waits of more than a few seconds."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

FIRST_S = 5.0  # a shorter wait is not mentioned

EVERY_S = 30.0  # between the messages about one wait

POLL_S = 0.5  # between looks at whether the wait is over


@contextlib.contextmanager
def announce_wait(
    reason: str | Callable[[], str], is_over: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Log what the command waits for, while the context waits for more than FIRST_S.

    Args:
        reason: Continues a sentence after "waiting for"; a function is called for each message, in a thread.
        is_over: Returns True once the awaited event has happened; called in a thread.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_announce, args=(reason, is_over, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def hold_lock(path: Path, reason: str) -> Iterator[None]:
    """Hold the lock of a file, which is created; log a long wait for its holder, as `announce_wait` does."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with announce_wait(reason):
            stack.enter_context(FileLock(path))
        yield


def _announce(
    reason: str | Callable[[], str], is_over: Callable[[], bool] | None, ended: threading.Event
) -> None:
    started_s, next_s = time.monotonic(), FIRST_S
    try:
        while not ended.wait(POLL_S if is_over else next_s - (time.monotonic() - started_s)):
            if is_over is not None and is_over():
                return
            waited_s = time.monotonic() - started_s
            if waited_s >= next_s:
                text = reason if isinstance(reason, str) else reason()
                logger.info("  waiting for %s (%.0f s)", text, waited_s)
                next_s = waited_s + EVERY_S
    except Exception:  # a message is not worth a failure
        logger.debug("a wait cannot be described", exc_info=True)
