"""Progress of a scoring run: on the terminal, in the run record, in the metrics."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jobs.command_run import CommandRun
from pipeline.runtime.progress import ProgressBar
from pipeline.scoring.metrics import ScoringGauges
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit


class ScoringProgress:
    """Sums over the finished units. Ray must be connected: metrics go through it."""

    def __init__(
        self, units: Sequence[WorkUnit], gauges: ScoringGauges, run: CommandRun, bar: ProgressBar
    ) -> None:
        self.units = {unit.unit_id: unit for unit in units}
        self.gauges, self.run, self.bar = gauges, run, bar
        self.started_s = time.time()
        self.results: list[UnitResult] = []
        self.rows, self.rows_done, self.num_failed = sum(unit.rows for unit in units), 0, 0
        self.labels: Counter[str] = Counter()
        run.set_counts(**self.counts())

    def record_unit(self, result: UnitResult) -> None:
        """Update the run record, the metrics and the progress bar with one finished unit."""
        unit = self.units[result.unit_id]
        self.results.append(result)
        self.rows_done += unit.rows
        self.num_failed += bool(result.error)
        tasks = result.tasks or (unit.task,)
        labels_per_task = result.labels // len(tasks)
        for task in tasks:
            self.labels[task] += labels_per_task
        counts = self.counts()
        self.run.set_counts(**counts)
        units_left = len(self.units) - len(self.results)
        for task in tasks:
            # rows without a label and failures count once, for the task of the unit's folder
            errors, has_failed = (result.errors, bool(result.error)) if task == unit.task else (0, False)
            self.gauges.record_unit(
                task, labels_per_task, errors, has_failed, units_left, counts["pairs_per_s"]
            )
        by_task = ", ".join(f"{task} {count:,}" for task, count in sorted(self.labels.items()))
        self.bar.update(self.rows_done, f"units {len(self.results):,}/{len(self.units):,}  {by_task}")

    def counts(self) -> dict[str, Any]:
        """Return the counts for the run record."""
        seconds = time.time() - self.started_s
        rate = self.rows_done / seconds if seconds > 0 else 0.0
        return {
            "units": len(self.units),
            "units_done": len(self.results),
            "units_failed": self.num_failed,
            "rows": self.rows,
            "rows_done": self.rows_done,
            "labels": dict(self.labels),
            "pairs_per_s": rate,
            "left_s": (self.rows - self.rows_done) / rate if rate else None,
        }
