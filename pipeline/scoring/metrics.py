"""Ray metrics of a scoring run."""

from pipeline.runtime.ray_metrics import metric


class ScoringGauges:
    """Units left, labels, bad rows and failed units, by task."""

    def __init__(self, run: str) -> None:
        self.units_left = metric("Gauge", run, "scoring_units_left", "Units that are still to be scored.")
        self.pairs_per_s = metric(
            "Gauge", run, "scoring_pairs_per_second", "Pairs a second since this scoring began."
        )
        self.labels = metric("Counter", run, "scoring_labels", "Labels published.", "task")
        self.errors = metric("Counter", run, "scoring_errors", "Rows published as errors.", "task")
        self.failed = metric("Counter", run, "scoring_failed_units", "Units that failed.", "task")

    def unit_done(
        self, task: str, labels: int, errors: int, failed: bool, units_left: int, pairs_per_s: float
    ) -> None:
        """One unit is through."""
        self.units_left.set(units_left)
        self.pairs_per_s.set(pairs_per_s)
        for counter, count in ((self.labels, labels), (self.errors, errors), (self.failed, int(failed))):
            if count:
                counter.inc(count, tags={"task": task})
