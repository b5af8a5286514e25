"""Ray metrics of a training."""

from pipeline.runtime.ray_metrics import MetricTags, create_metric
from pipeline.training.event_log import EvaluationEvent, StartEvent, StepEvent


class TrainingGauges:
    """Gauges of steps, speed and quality, and a counter of restarts; a `TrainingListener`."""

    def __init__(self, run: MetricTags) -> None:
        self._steps = create_metric("Gauge", run, "training_step", "Steps done.")
        self._step_seconds = create_metric("Gauge", run, "training_step_seconds", "Seconds of the last step.")
        self._tokens_per_s = create_metric(
            "Gauge", run, "training_tokens_per_second", "Tokens a second of the last step, padding left out."
        )
        self._macro_pr_auc = create_metric(
            "Gauge",
            run,
            "training_valid_macro_pr_auc",
            "Macro PR-AUC of the last evaluation on the valid split.",
        )
        self._restarts = create_metric(
            "Counter", run, "training_restarts", "Times that lost workers were started again."
        )

    def start(self, event: StartEvent) -> None:
        """Do nothing: a start has no metric."""

    def step(self, event: StepEvent) -> None:
        """Record a step."""
        self._steps.set(event.step)
        self._step_seconds.set(event.step_s)
        self._tokens_per_s.set(event.tokens_per_s)

    def evaluation(self, event: EvaluationEvent) -> None:
        """Record an evaluation."""
        if event.macro_pr_auc is not None:
            self._macro_pr_auc.set(event.macro_pr_auc)

    def count_restart(self) -> None:
        """Count a restart of lost workers."""
        self._restarts.inc()
