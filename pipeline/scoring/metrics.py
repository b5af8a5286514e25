"""Ray metrics of a scoring run."""

from pipeline.runtime.ray_metrics import MetricTags, create_metric


class ScoringGauges:
    """Gauges and counters of one run: units left, speed, labels, bad rows and failed units."""

    def __init__(self, run: MetricTags) -> None:
        self.units_left = create_metric(
            "Gauge", run, "scoring_units_left", "Units that are still to be scored."
        )
        self.pairs_per_s = create_metric(
            "Gauge", run, "scoring_pairs_per_second", "Pairs a second since this scoring began."
        )
        self.labels = create_metric("Counter", run, "scoring_labels", "Labels published.", "task")
        self.errors = create_metric("Counter", run, "scoring_errors", "Rows published as errors.", "task")
        self.failed = create_metric("Counter", run, "scoring_failed_units", "Units that failed.", "task")

    def record_unit(
        self, task: str, labels: int, errors: int, failed: bool, units_left: int, pairs_per_s: float
    ) -> None:
        """Record a unit that was scored or failed."""
        self.units_left.set(units_left)
        self.pairs_per_s.set(pairs_per_s)
        for counter, count in ((self.labels, labels), (self.errors, errors), (self.failed, int(failed))):
            if count:
                counter.inc(count, tags={"task": task})
