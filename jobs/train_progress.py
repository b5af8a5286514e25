"""Show a training on the console and hand it to MLflow."""

import contextlib
from collections import defaultdict
from typing import Any

from jobs.console import Console, Progress
from pipeline.registry.run_tracker import RunTracker


class StepWatch:
    """Shows what the workers write on the console and hands it to MLflow."""

    def __init__(self, console: Console, tracker: RunTracker) -> None:
        self.console, self.tracker = console, tracker
        self.steps = 0
        self.line: Progress | None = None
        self.stack = contextlib.ExitStack()
        self.mean_loss: float | None = None
        # seconds by what they were spent on, and tokens
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.start: dict[str, Any] = {}

    def seen(self, line: dict[str, Any]) -> None:
        """One line of the live file: a start, a step or an evaluation."""
        if "starts_after" in line:
            self.start = line
        elif "evaluated_after" in line:
            self._evaluated(line)
        else:
            self._step(line)

    def close(self) -> None:
        """End the live line, and say what the steps' time went into."""
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
            self.console.say(f"  a step took {seconds / self.sums['steps']:.3f} s: {shares}; {speed}")

    def _step(self, line: dict[str, Any]) -> None:
        if self.line is None:
            self.line = self.stack.enter_context(
                self.console.progress("train", line["num_steps"], "steps", already=line["step"] - 1)
            )
        if self.start:
            self._first_step(line)
        self.steps = line["step"]
        # a running mean over about 20 steps: a single batch's loss jumps too much to read
        self.mean_loss = (
            line["loss"] if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * line["loss"]
        )
        self.line.update(line["step"], f"loss {self.mean_loss:.3f}  {line['rows_per_s']:.0f} pairs/s")
        self.tracker.log_step(line)
        counted = {
            **line["seconds"],
            **{name: line[name] for name in ("tokens", "tokens_computed", "padding")},
            "steps": 1,
        }
        for name, number in (counted | {"mfu_seconds": line["mfu"] * line["step_s"]}).items():
            self.sums[name] += number

    def _first_step(self, line: dict[str, Any]) -> None:
        """What went before the first step of a start of the workers, and what they found."""
        if (shared := self.start["tokens_shared"]) is None:
            self.console.say("  rows are padded: this model, or this machine, does not take them end to end")
        else:
            fewest, most = min(shared), max(shared)
            count = f"{most}" if fewest == most else f"{fewest} to {most}"
            alike = f"; those of a task begin with the same {count} tokens, taken once a pass" if most else ""
            self.console.say(f"  rows lie end to end without padding{alike}")
        seconds = {**self.start["seconds"], "step": line["at_s"] - self.start["at_s"]}
        spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        self.console.say(
            f"  {sum(seconds.values()):.1f} s from the start of the workers to the end of their first "
            f"step: {spent}"
        )
        self.start = {}

    def _evaluated(self, line: dict[str, Any]) -> None:
        self.tracker.log_evaluation(line)
        if self.line is not None:
            self.line.make_room()
        self.console.say(interim_table(line))


def interim_table(line: dict[str, Any]) -> str:
    """An evaluation on the valid split as aligned text."""
    if not line["tasks"]:
        return (
            f"  after step {line['evaluated_after']:,}: no task has both relevant and irrelevant valid "
            "rows, so the last weights are kept"
        )
    width = max(len("valid split"), *map(len, line["tasks"]))
    rows = [f"    {'valid split':<{width}}  rows  AUC    PR-AUC  log loss"]
    for task, f in line["tasks"].items():
        rows.append(
            f"    {task:<{width}} {f['rows']:>5,}  {f['roc_auc']:.3f}  {f['pr_auc']:.3f}   "
            f"{f['log_loss']:.3f}"
        )
    rows.append(
        f"    {'macro':<{width}} {'':5}         {line['macro_pr_auc']:.3f}   {line['macro_log_loss']:.3f}"
    )
    judged = "the best so far, its weights are kept" if line["is_best"] else "not better than the best"
    return "\n".join(
        [f"  after step {line['evaluated_after']:,}, in {line['seconds']:.1f} s: {judged}", *rows]
    )
