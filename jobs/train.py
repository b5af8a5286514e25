"""`relevance train`: Ray Train workers, DeepSpeed, and a bundle at the end."""

import contextlib
from collections import defaultdict
from typing import Any

from jobs.cluster import ray_cluster
from pipeline.config import RunConfig
from pipeline.logs import Console, LateLine, Progress
from pipeline.tracking import RunTracker
from pipeline.trainer import planned_parameters, run_training, training_fingerprint


def run_train(config: RunConfig, console: Console) -> dict[str, Any]:
    """Train, or use the finished training of this very config and data; returns the trained bundle's folder."""
    training = config.training
    fingerprint, digest = training_fingerprint(config)
    trainable, total = planned_parameters(config)
    share = f"{100 * trainable / total:.4f}"
    console.say(f"  {config.adapter.method}: trainable params: {trainable:,} || all params: {total:,} || trainable%: {share}")
    tracker = RunTracker(config, fingerprint, console)
    watch = StepWatch(console, tracker)
    console.say(f"  starting {training.num_workers} workers (ZeRO stage {config.deepspeed.zero_stage}) ...")
    status = "FAILED"
    try:
        with ray_cluster(training.num_workers * training.threads_per_worker):
            encoding = LateLine(console, "encode", "rows")
            bundle_dir = run_training(config, fingerprint, digest, encoding.update, watch.seen, console.say)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        watch.close()
        tracker.finish(status)
    if watch.steps == 0:
        console.say(f"  this very training was finished before: {bundle_dir}")
    return {"trained": str(bundle_dir), "mlflow_run": tracker.run_id, "steps": watch.steps}


class StepWatch:
    """Shows each step on the console and hands it to MLflow."""

    def __init__(self, console: Console, tracker: RunTracker) -> None:
        self.console, self.tracker = console, tracker
        self.steps = 0
        self.line: Progress | None = None
        self.stack = contextlib.ExitStack()
        self.mean_loss: float | None = None
        self.sums: defaultdict[str, float] = defaultdict(float)  # seconds by what they were spent on, and tokens

    def seen(self, record: dict[str, Any]) -> None:
        """One step's record."""
        if self.line is None:
            self.line = self.stack.enter_context(self.console.progress("train", record["num_steps"], "steps", already=record["step"] - 1))
        self.steps = record["step"]
        # a running mean over about 20 steps: a single batch's loss jumps too much to read
        self.mean_loss = record["loss"] if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * record["loss"]
        self.line.update(record["step"], f"loss {self.mean_loss:.3f}  {record['rows_per_s']:.0f} pairs/s")
        self.tracker.log_step(record)
        counted = {**record["seconds"], "tokens": record["tokens"], "tokens_computed": record["tokens_computed"], "steps": 1}
        for name, number in (counted | {"mfu_seconds": record["mfu"] * sum(record["seconds"].values())}).items():
            self.sums[name] += number

    def close(self) -> None:
        """End the live line, and say what the steps' time went into."""
        self.stack.close()
        if self.sums["steps"]:
            names = ("data", "forward", "backward", "communication", "optimizer", "checkpoint")
            seconds = sum(self.sums[name] for name in names)
            shares = ", ".join(f"{name} {self.sums[name] / seconds:.1%}" for name in names)
            padding, mfu = 1 - self.sums["tokens"] / self.sums["tokens_computed"], self.sums["mfu_seconds"] / seconds
            speed = f"{self.sums['tokens'] / seconds:,.0f} tokens/s, {padding:.1%} of the computed ones padding, MFU {mfu:.1%} of a measured matmul"
            self.console.say(f"  a step took {seconds / self.sums['steps']:.3f} s: {shares}; {speed}")
