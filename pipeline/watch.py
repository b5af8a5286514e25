"""A watch over one training worker: where it gets no further it ends itself, so that it is started again, and leaves where it was stuck."""

import faulthandler
from typing import TextIO


class Watch:
    """While inside, `alive` must be called every `timeout_s` seconds, or the process ends with a stack of each of its threads in `file`.

    The clock is faulthandler's thread, which needs no GIL, so that a hang in a library's C code is noticed too. A process has one such clock.
    """

    def __init__(self, file: TextIO, timeout_s: float) -> None:
        self.file, self.timeout_s = file, timeout_s

    def alive(self) -> None:
        """Wind up the clock."""
        faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=self.file)

    def __enter__(self) -> "Watch":
        self.alive()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
