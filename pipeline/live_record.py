"""What a training worker writes for those who follow it; `live.py` reads it."""

import json
import math
import time
from pathlib import Path
from typing import Any

from pipeline.storage.filesystem import naming_file
from pipeline.train_step import StepDone, Worker


def live_record(worker: Worker, done: StepDone, step_s: float) -> dict[str, Any]:
    """One step as people follow it. `step_s` it took in all."""
    rows = worker.sampler.global_rows(done.step)
    names = [task.name for task in worker.config.tasks]
    tokens = int(worker.encoded.length_N[rows].sum())
    flops = (done.tokens_computed - done.num_padding) * worker.flops_per_token + len(rows) * worker.flops_per_row
    return {
        "step": done.step + 1,
        "num_steps": worker.num_steps,
        "rows": len(rows),
        "loss": float(done.loss_T.sum() / max(done.weight_T.sum(), 1e-12)),
        "task_losses": {name: float(loss / weight) for name, loss, weight in zip(names, done.loss_T, done.weight_T, strict=True) if weight > 0},
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
    torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n") if "starts_after" in record else False
    with naming_file(path), path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(record) + "\n")
