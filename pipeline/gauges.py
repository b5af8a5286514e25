"""A training's step time, speed and restarts as Ray metrics, which every Ray node exports for Prometheus."""

from typing import Any

from pipeline.live import OnLine


class TrainingGauges:
    """The metrics of one run, which each carries as its tag `run`. Ray must be connected."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        def named(kind: Any, name: str, description: str) -> Any:
            metric = kind(name, description=description, tag_keys=("run",))
            metric.set_default_tags({"run": run})
            return metric

        self.step = named(Gauge, "relevance_training_step", "Steps done.")
        self.step_seconds = named(Gauge, "relevance_training_step_seconds", "Seconds of the last step.")
        self.tokens_per_s = named(Gauge, "relevance_training_tokens_per_second", "Tokens a second of the last step, padding left out.")
        self.macro_pr_auc = named(Gauge, "relevance_training_valid_macro_pr_auc", "Macro PR-AUC of the last evaluation on the valid split.")
        self.restarts = named(Counter, "relevance_training_restarts", "Times that lost workers were started again.")

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
