"""Training events on the terminal, in the run record and in MLflow."""

import contextlib
import logging
from collections import defaultdict

from jobs.command_run import CommandRun
from jobs.console import aligned
from pipeline.registry.run_tracker import RunTracker
from pipeline.runtime.progress import ProgressBar
from pipeline.training.event_log import EvaluationEvent, StartEvent, StepEvent

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Listener that shows the events of the workers and sends them to MLflow."""

    def __init__(self, run: CommandRun, tracker: RunTracker) -> None:
        self.run, self.tracker = run, tracker
        self.steps = 0
        self.bar: ProgressBar | None = None
        self.stack = contextlib.ExitStack()
        self.mean_loss: float | None = None
        # seconds by part of a step, and numbers of tokens, over all steps
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.last_start: StartEvent | None = None  # None once it is shown

    def start(self, event: StartEvent) -> None:
        """Keep the start of the workers; it is shown with the first step."""
        self.last_start = event

    def close(self) -> None:
        """Close the bar, and log the shares of the steps' time by part."""
        self.stack.close()
        if self.sums["steps"]:
            names = ("data", "forward", "backward", "communication", "optimizer", "checkpoint")
            seconds = sum(self.sums[name] for name in names)
            shares = ", ".join(f"{name} {self.sums[name] / seconds:.1%}" for name in names)
            computed, mfu = self.sums["tokens_computed"], self.sums["mfu_seconds"] / seconds
            share = (
                f"{computed / self.sums['tokens']:.1%} of them computed, of which "
                f"{self.sums['padding'] / computed:.1%} padding"
            )
            speed = (
                f"{self.sums['tokens'] / seconds:,.0f} tokens/s, {share}, MFU {mfu:.1%} of a measured matmul"
            )
            logger.info(f"  a step took {seconds / self.sums['steps']:.3f} s: {shares}; {speed}")

    def step(self, event: StepEvent) -> None:
        """Show a step and send it to MLflow."""
        if self.bar is None:
            self.bar = self.stack.enter_context(
                self.run.track("train", event.num_steps, "steps", initial=event.step - 1)
            )
        if self.last_start:
            self._show_start(self.last_start, event)
            self.last_start = None
        self.steps = event.step
        # a running mean over about 20 steps: a single batch's loss jumps too much to read
        self.mean_loss = event.loss if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * event.loss
        self.bar.update(event.step, f"loss {self.mean_loss:.3f}  {event.rows_per_s:.0f} pairs/s")
        self.tracker.log_step(event)
        counted = {
            **event.seconds,
            "tokens": event.tokens,
            "tokens_computed": event.tokens_computed,
            "padding": event.padding,
            "steps": 1,
        }
        for name, number in (counted | {"mfu_seconds": event.mfu * event.step_s}).items():
            self.sums[name] += number

    def _show_start(self, start: StartEvent, first_step: StepEvent) -> None:
        """Show how long the start of the workers took, and whether they pack rows."""
        if (shared := start.tokens_shared) is None:
            logger.info("  rows are padded: this model or this machine does not support packed rows")
        else:
            fewest, most = min(shared), max(shared)
            count = f"{most}" if fewest == most else f"{fewest} to {most}"
            prefix = f"; the first {count} tokens of a task's rows are computed once a pass" if most else ""
            logger.info(f"  rows are packed without padding{prefix}")
        seconds = {**start.seconds, "step": first_step.at_s - start.at_s}
        spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        logger.info(
            f"  {sum(seconds.values()):.1f} s from the start of the workers to the end of the first step: "
            f"{spent}"
        )

    def evaluation(self, event: EvaluationEvent) -> None:
        """Show an evaluation and send it to MLflow."""
        self.tracker.log_evaluation(event)
        for line in validation_table(event):
            logger.info("%s", line)


def validation_table(event: EvaluationEvent) -> list[str]:
    """Return an evaluation on the valid split as the lines of a table."""
    if event.macro_pr_auc is None or event.macro_log_loss is None:
        return [
            f"  after step {event.evaluated_after:,}: no task has both relevant and irrelevant valid "
            "rows, so the last weights are kept"
        ]
    rows: list[tuple[str, ...]] = [("valid split", "rows", "AUC", "PR-AUC", "log loss")]
    for task, metrics in event.tasks.items():
        values = [f"{metrics[name]:.3f}" for name in ("roc_auc", "pr_auc", "log_loss")]
        rows.append((task, f"{metrics['rows']:,}", *values))
    rows.append(("macro", "", "", f"{event.macro_pr_auc:.3f}", f"{event.macro_log_loss:.3f}"))
    verdict = "the best so far, its weights are kept" if event.is_best else "not better than the best"
    title = f"  after step {event.evaluated_after:,}, in {event.seconds:.1f} s: {verdict}"
    return [title, *(f"    {line}" for line in aligned(rows))]
