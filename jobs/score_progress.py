"""Progress of a scoring run: on the terminal, in the run record, in the metrics."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.command_run import CommandRun
from pipeline.inference.attempts import rows_scored
from pipeline.runtime.progress import ProgressBar
from pipeline.scoring.metrics import ScoringGauges
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit

LOOK_EVERY_S = 2.0  # at the rows of units under way


class ScoringProgress:
    """Sums over the finished units. Ray must be connected: metrics go through it."""

    def __init__(
        self, units: Sequence[WorkUnit], gauges: ScoringGauges, run: CommandRun, bar: ProgressBar
    ) -> None:
        self.units = {unit.unit_id: unit for unit in units}
        self.gauges, self.run, self.bar = gauges, run, bar
        self.started_s = time.monotonic()
        self.results: list[UnitResult] = []
        self.rows, self.rows_done, self.num_failed = sum(unit.rows for unit in units), 0, 0
        self.labels: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._rows_shown = 0
        run.set_counts(**self.counts())

    def record_unit(self, result: UnitResult) -> None:
        """Update the run record, the metrics and the progress bar with one finished unit."""
        unit = self.units[result.unit_id]
        with self._lock:
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
        self._show(0)

    @contextlib.contextmanager
    def follow(self, attempts_dir: Path) -> Iterator[None]:
        """Show the rows of units under way, whose attempts the actors record in a folder."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_EVERY_S):
                self._show(rows_scored(attempts_dir))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _show(self, rows_under_way: int) -> None:
        """Update the bar, which never goes back: a unit may be published while the attempts are read."""
        with self._lock:
            under_way = min(rows_under_way, self.rows - self.rows_done - 1)  # the last result ends the bar
            num_rows = self.rows_done + max(under_way, 0)
            if num_rows < max(self._rows_shown, 1):
                return
            self._rows_shown = num_rows
            by_task = ", ".join(f"{task} {count:,}" for task, count in sorted(self.labels.items()))
            self.bar.update(num_rows, f"units {len(self.results):,}/{len(self.units):,}  {by_task}")

    def counts(self) -> dict[str, Any]:
        """Return the counts for the run record."""
        seconds = time.monotonic() - self.started_s
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
