"""What training several tasks together brought over training each alone (the mean relative gain of Maninis et
al. 2019), where such runs exist.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.storage.filesystem import json_sha256


def rows_digest(table: pa.Table) -> str:
    """What tells test rows from others: their ids, in whatever order."""
    return json_sha256(sorted(table.column("row_id").to_pylist()))


def gain_over_single_tasks(work_dir: Path, own_name: str, tasks: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"runs": run by task, "mean_relative_gain"}: the mean of (PR-AUC - that of the run of the task alone) /
    the latter, over the tasks that a run of one task in the same folder was measured on, by the very same
    rows; the newest where there are several. None: there is no such run.

    `tasks` are an evaluation's, each with `rows_digest`.
    """
    found: dict[str, tuple[float, str, float]] = {}  # task -> when, run, PR-AUC
    for path in sorted(work_dir.glob("*/evaluation.json")):
        if path.parent.name == own_name:
            continue
        try:
            other = json.loads(path.read_text(encoding="utf-8"))["tasks"]
            ((name, figures),) = other.items()
            digest, pr_auc = figures["rows_digest"], float(figures["model"]["pr_auc"]["value"])
        # of several tasks, of an earlier release, or being written
        except (KeyError, OSError, TypeError, ValueError):
            continue
        if name in tasks and tasks[name]["rows_digest"] == digest:
            found[name] = max(
                found.get(name, (0.0, "", 0.0)), (path.stat().st_mtime, path.parent.name, pr_auc)
            )
    if not found:
        return None
    gains = [
        (tasks[name]["model"]["pr_auc"]["value"] - alone) / alone for name, (_, _, alone) in found.items()
    ]
    return {
        "runs": {name: run for name, (_, run, _) in found.items()},
        "mean_relative_gain": float(np.mean(gains)),
    }
