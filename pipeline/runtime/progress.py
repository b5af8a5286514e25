"""Interface through which long-running functions report how far they are.

Commands pass an object that draws progress bars; `SilentProgress` is for tests and library use.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class ProgressBar(Protocol):
    """A progress bar."""

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Set the number of elements done, a short note beside the bar, and a new total if it changed."""


class Progress(Protocol):
    """Factory of progress bars."""

    def track(
        self, description: str, total: int | None, unit: str, initial: int = 0
    ) -> contextlib.AbstractContextManager[ProgressBar]:
        """Open a bar that closes with the context.

        Args:
            description: The verb in front of the bar, such as "encode".
            total: Number of elements in all; None if it is unknown.
            unit: Plural noun of the elements, such as "rows".
            initial: Elements done by an earlier command; they do not count towards the rate.
        """


class SilentBar:
    """Progress bar that shows nothing."""

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        pass


class SilentProgress:
    """Progress that shows nothing."""

    @contextlib.contextmanager
    def track(
        self, description: str, total: int | None, unit: str, initial: int = 0
    ) -> Iterator[ProgressBar]:
        yield SilentBar()
