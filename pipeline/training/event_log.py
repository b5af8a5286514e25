"""The log of a training's events: workers write it, the driver and `relevance status` read it."""

import json
import math
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.files import naming_file
from pipeline.training.step import StepDone, Worker

OnLine = Callable[[dict[str, Any]], None]


def read_line(text: str) -> dict[str, Any] | None:
    """A line; None where it is none, as a full disk or a power cut may leave it."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


class LiveFollower:
    """Calls back with each json line that the training writes, from a thread of its own, until closed. What
    goes wrong in a call goes to stderr, and the lines after it are called back with all the same: a training
    does not hang on who looks on.
    """

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


def live_record(worker: Worker, done: StepDone, step_s: float) -> dict[str, Any]:
    """One step as people follow it. `step_s` it took in all."""
    rows = worker.sampler.global_rows(done.step)
    names = [task.name for task in worker.config.tasks]
    tokens = int(worker.encoded.length_N[rows].sum())
    flops = (done.tokens_computed - done.num_padding) * worker.flops_per_token + len(
        rows
    ) * worker.flops_per_row
    return {
        "step": done.step + 1,
        "num_steps": worker.num_steps,
        "rows": len(rows),
        "loss": float(done.loss_T.sum() / max(done.weight_T.sum(), 1e-12)),
        "task_losses": {
            name: float(loss / weight)
            for name, loss, weight in zip(names, done.loss_T, done.weight_T, strict=True)
            if weight > 0
        },
        "learning_rate": worker.config.optimizer.learning_rate * done.rate_share,
        "rows_per_s": len(rows) / step_s,
        "tokens_per_s": tokens / step_s,
        "tokens": tokens,  # of the rows, whether what they begin with was computed for each of them or once
        "tokens_computed": done.tokens_computed,  # padding included
        "padding": done.num_padding,
        "mfu": flops / step_s / (worker.peak_flops_per_s * worker.world_size),
        "at_s": time.time(),
        "step_s": step_s,
        "seconds": {name: round(value, 6) for name, value in done.seconds.items()},
        "gradient_norm": math.sqrt(sum(norm**2 for norm in done.group_norms.values())),
        "group_gradient_norms": done.group_norms,
    }


def append_live(path: Path, record: dict[str, Any]) -> None:
    """Add a json line to the file that the driver follows."""
    # a start before this one may have ended in the middle of a line
    torn = (
        path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        if "starts_after" in record
        else False
    )
    with naming_file(path), path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(record) + "\n")
