"""How far a scoring is: on the terminal, for `relevance status`, for Prometheus."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.console import Progress
from pipeline.scoring.metrics import ScoringGauges
from pipeline.scoring.unit_result import Outcome
from pipeline.scoring.work_units import Unit
from pipeline.storage.filesystem import read_json, write_json


class ScoringLive:
    """Units of one run as they get done. Ray must be connected."""

    def __init__(self, path: Path, run: str, units: Sequence[Unit], progress: Progress) -> None:
        self.path, self.progress, self.gauges = path, progress, ScoringGauges(run)
        self.units = {unit.partition: unit for unit in units}
        self.started_s = time.time()
        self.done: list[Outcome] = []
        self.rows, self.rows_done, self.failed = sum(unit.rows for unit in units), 0, 0
        self.labels: Counter[str] = Counter()
        with contextlib.suppress(OSError):
            write_json(path, self.facts())

    def unit_done(self, outcome: Outcome) -> None:
        """Tell everybody."""
        unit = self.units[outcome.partition]
        self.done.append(outcome)
        self.rows_done += unit.rows
        self.failed += bool(outcome.error)
        tasks = outcome.tasks or (unit.task,)
        for task in tasks:
            self.labels[task] += outcome.labels // len(tasks)
        facts = self.facts()
        with contextlib.suppress(OSError):  # labels may go to another disk than the one that is full
            write_json(self.path, facts)
        units_left = len(self.units) - len(self.done)
        for task in tasks:  # bad rows and failures are told once, of the task whose folder they lie in
            bad = (outcome.errors, bool(outcome.error)) if task == unit.task else (0, False)
            self.gauges.unit_done(task, outcome.labels // len(tasks), *bad, units_left, facts["pairs_per_s"])
        by_task = ", ".join(f"{task} {count:,}" for task, count in sorted(self.labels.items()))
        self.progress.update(self.rows_done, f"units {len(self.done):,}/{len(self.units):,}  {by_task}")

    def facts(self) -> dict[str, Any]:
        """The state of things, as `relevance status` reads it."""
        seconds = time.time() - self.started_s
        rate = self.rows_done / seconds if seconds > 0 else 0.0
        return {
            "units": len(self.units),
            "units_done": len(self.done),
            "units_failed": self.failed,
            "rows": self.rows,
            "rows_done": self.rows_done,
            "labels": dict(self.labels),
            "pairs_per_s": rate,
            "left_s": (self.rows - self.rows_done) / rate if rate else None,
            "at_s": time.time(),
        }


def live_path(run_dir: Path) -> Path:
    """Where a run's scoring tells how far it is."""
    return run_dir / "scoring" / "live.json"


def read_live(run_dir: Path) -> dict[str, Any] | None:
    """What a scoring that is under way told last; None before it told anything."""
    path = live_path(run_dir)
    return dict(read_json(path)) if path.is_file() else None
