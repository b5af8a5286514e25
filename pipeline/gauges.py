"""What a training and a scoring do as Ray metrics, which every Ray node exports for Prometheus.

Each metric carries its run's name as its tag `run`. Ray must be connected.
"""

from typing import Any

from pipeline.live import OnLine


def metric(kind: str, run: str, name: str, description: str, *tags: str) -> Any:
    """A Gauge or Counter of Ray, with tags beside `run`."""
    from ray.util import metrics

    made = getattr(metrics, kind)(f"relevance_{name}", description=description, tag_keys=("run", *tags))
    made.set_default_tags({"run": run})
    return made


class TrainingGauges:
    """Step time, speed, restarts."""

    def __init__(self, run: str) -> None:
        self.step = metric("Gauge", run, "training_step", "Steps done.")
        self.step_seconds = metric("Gauge", run, "training_step_seconds", "Seconds of the last step.")
        self.tokens_per_s = metric("Gauge", run, "training_tokens_per_second", "Tokens a second of the last step, padding left out.")
        self.macro_pr_auc = metric("Gauge", run, "training_valid_macro_pr_auc", "Macro PR-AUC of the last evaluation on the valid split.")
        self.restarts = metric("Counter", run, "training_restarts", "Times that lost workers were started again.")

    def watching(self, on_line: OnLine) -> OnLine:
        """`on_line`, with each line told to Ray first."""

        def told(line: dict[str, Any]) -> None:
            if "step" in line:
                self.step.set(line["step"])
                self.step_seconds.set(line["step_s"])
                self.tokens_per_s.set(line["tokens_per_s"])
            elif "macro_pr_auc" in line:
                self.macro_pr_auc.set(line["macro_pr_auc"])
            on_line(line)

        return told

    def restarted(self) -> None:
        """Workers were lost and are started again."""
        self.restarts.inc()


class ScoringGauges:
    """Units left, labels, bad rows and failed units, by task."""

    def __init__(self, run: str) -> None:
        self.units_left = metric("Gauge", run, "scoring_units_left", "Units that are still to be scored.")
        self.pairs_per_s = metric("Gauge", run, "scoring_pairs_per_second", "Pairs a second since this scoring began.")
        self.labels = metric("Counter", run, "scoring_labels", "Labels published.", "task")
        self.errors = metric("Counter", run, "scoring_errors", "Rows published as errors.", "task")
        self.failed = metric("Counter", run, "scoring_failed_units", "Units that failed.", "task")

    def unit_done(self, task: str, labels: int, errors: int, failed: bool, units_left: int, pairs_per_s: float) -> None:
        """One unit is through."""
        self.units_left.set(units_left)
        self.pairs_per_s.set(pairs_per_s)
        for counter, count in ((self.labels, labels), (self.errors, errors), (self.failed, int(failed))):
            if count:
                counter.inc(count, tags={"task": task})
