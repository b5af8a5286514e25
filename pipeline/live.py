"""What workers write while they train, read as it comes. A line of json is one of three: a start (`starts_after`), a step (`step`), an evaluation on
the valid split (`evaluated_after`)."""

import json
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

OnLine = Callable[[dict[str, Any]], None]


def read_line(text: str) -> dict[str, Any] | None:
    """A line; None where it is none, as a full disk or a power cut may leave it."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


class LiveFollower:
    """Calls back with each json line that the training writes, from a thread of its own, until closed. What goes wrong in a call goes to
    stderr, and the lines after it are called back with all the same: a training does not hang on who looks on."""

    def __init__(self, path: Path, on_line: OnLine, every_s: float = 0.5) -> None:
        self.path, self.on_line, self.every_s = path, on_line, every_s
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "LiveFollower":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.thread.join()

    def _follow(self) -> None:
        with self.path.open(encoding="utf-8") as file:
            tail = ""
            while True:
                last_round = self.closing.is_set()
                tail += file.read()
                *lines, tail = tail.split("\n")
                for line in filter(None, map(read_line, lines)):
                    try:
                        self.on_line(line)
                    except Exception:
                        traceback.print_exc()
                if last_round:
                    return
                self.closing.wait(self.every_s)
