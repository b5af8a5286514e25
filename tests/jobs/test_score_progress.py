"""Progress of scoring: units, and the rows of units under way."""

import threading
from types import SimpleNamespace

import numpy as np

from jobs import score_progress
from jobs.score_progress import ScoringProgress
from pipeline.inference.attempts import UnitAttempts
from pipeline.scoring.unit_result import UnitResult


class RecordingBar:
    """Progress bar that records the numbers of rows."""

    def __init__(self):
        self.updates, self.moved = [], threading.Event()

    def update(self, done, note="", total=None):
        """Record an update."""
        self.updates.append(done)
        self.moved.set()


def test_rows_of_a_unit_under_way_move_the_bar(tmp_path, monkeypatch):
    monkeypatch.setattr(score_progress, "LOOK_EVERY_S", 0.01)
    units = [SimpleNamespace(unit_id=name, rows=100, task="two") for name in ("a", "b")]
    run = SimpleNamespace(set_counts=lambda **counts: None)
    gauges = SimpleNamespace(record_unit=lambda *values: None)
    bar = RecordingBar()
    progress = ScoringProgress(units, gauges, run, bar)
    attempts = UnitAttempts(tmp_path, "a")
    attempts.begin()
    with progress.follow(tmp_path):
        attempts.record_in_flight(np.arange(64), ["x"] * 64)
        attempts.record_in_flight(np.arange(64, 100), ["x"] * 36)
        assert bar.moved.wait(10)
        progress.record_unit(UnitResult("a", "a", labels=100, tasks=("two",)))
        progress.record_unit(UnitResult("b", "b", labels=100, tasks=("two",)))
    assert bar.updates[0] == 64 and bar.updates[-1] == 200
    assert bar.updates == sorted(bar.updates)
