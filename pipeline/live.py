"""What workers write while they train, read as it comes."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

StepSeen = Callable[[dict[str, Any]], None]


class LiveFollower:
    """Calls back with each json line that the training writes, from a thread of its own, until closed."""

    def __init__(self, path: Path, on_step: StepSeen, every_s: float = 0.5) -> None:
        self.path, self.on_step, self.every_s = path, on_step, every_s
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
                for line in lines:
                    self.on_step(json.loads(line))
                if last_round:
                    return
                self.closing.wait(self.every_s)
