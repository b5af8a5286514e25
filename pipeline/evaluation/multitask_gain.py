"""Gain of training several tasks together over training each alone.

Reference: mean relative gain of Maninis et al. 2019, Attentive Single-Tasking of Multiple Tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.files import parse_json
from pipeline.evaluation.results import SingleTaskGain, TaskEvaluation
from pipeline.storage.filesystem import json_sha256


@dataclass(frozen=True)
class _SingleTaskRun:
    """Evaluation of a run of one task."""

    evaluated_s: float  # time of the evaluation
    run: str
    task: str
    pr_auc: float
    rows_digest: str


def rows_digest(table: pa.Table) -> str:
    """Return a digest of the row ids, whatever their order."""
    return json_sha256(sorted(table.column("row_id").to_pylist()))


def gain_over_single_tasks(
    work_dir: Path, own_name: str, tasks: Mapping[str, TaskEvaluation]
) -> SingleTaskGain | None:
    """Return the mean of (PR-AUC - single-task PR-AUC) / single-task PR-AUC over tasks.

    A task counts if another run in `work_dir` was trained on it alone and evaluated on the same rows. The
    newest such run is used; without any, the result is None.
    """
    newest_runs: dict[str, _SingleTaskRun] = {}
    for path in sorted(work_dir.glob("*/evaluation.json")):
        if path.parent.name == own_name:
            continue
        run = _read_single_task_run(path)
        if run is None or run.task not in tasks or tasks[run.task].rows_digest != run.rows_digest:
            continue
        known = newest_runs.get(run.task)
        if known is None or (known.evaluated_s, known.run) < (run.evaluated_s, run.run):
            newest_runs[run.task] = run
    if not newest_runs:
        return None
    gains = [
        (tasks[name].systems["model"]["pr_auc"].value - run.pr_auc) / run.pr_auc
        for name, run in newest_runs.items()
    ]
    return SingleTaskGain({name: run.run for name, run in newest_runs.items()}, float(np.mean(gains)))


def _read_single_task_run(path: Path) -> _SingleTaskRun | None:
    """Read an evaluation.json; None if it has several tasks, another format, or is being written."""
    try:
        tasks = parse_json(path.read_bytes())["tasks"]
        ((name, fields),) = tasks.items()
        pr_auc = float(fields["model"]["pr_auc"]["value"])
        return _SingleTaskRun(path.stat().st_mtime, path.parent.name, name, pr_auc, fields["rows_digest"])
    except (KeyError, OSError, TypeError, ValueError):
        return None
