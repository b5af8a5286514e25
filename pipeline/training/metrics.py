"""Ray metrics of a training."""

from typing import Any

from pipeline.runtime.ray_metrics import metric
from pipeline.training.event_log import OnLine


class TrainingGauges:
    """Step time, speed, restarts."""

    def __init__(self, run: str) -> None:
        self.step = metric("Gauge", run, "training_step", "Steps done.")
        self.step_seconds = metric("Gauge", run, "training_step_seconds", "Seconds of the last step.")
        self.tokens_per_s = metric(
            "Gauge", run, "training_tokens_per_second", "Tokens a second of the last step, padding left out."
        )
        self.macro_pr_auc = metric(
            "Gauge",
            run,
            "training_valid_macro_pr_auc",
            "Macro PR-AUC of the last evaluation on the valid split.",
        )
        self.restarts = metric(
            "Counter", run, "training_restarts", "Times that lost workers were started again."
        )

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
