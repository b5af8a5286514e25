"""`relevance status`: the run folders of a work_dir, from their run records and training events."""

import time
from pathlib import Path
from typing import Any

from jobs.command_run import CommandRun
from jobs.run_texts import READ_ONLY_COMMANDS, describe_record, ended_badly, next_step
from pipeline.errors import ConfigError
from pipeline.runtime.run_record import RUNNING, RunRecord, read_records
from pipeline.training.event_log import (
    EvaluationEvent,
    StartEvent,
    StepEvent,
    TrainingEvent,
    read_events,
)

HEADINGS = ("run", "command", "state", "progress", "rate", "left", "best macro PR-AUC", "updated")

RATE_STEPS = 50  # newest steps that the rate is taken over


def run_status(work_dir: Path, run: CommandRun) -> dict[str, Any]:
    """Print a line for each run folder, and a second one for each whose last command failed or died.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not work_dir.is_dir():
        raise ConfigError(
            f"work_dir does not exist: {work_dir}; name the work_dir of your runs, or start one: "
            "relevance demo"
        )
    statuses = [folder_status(path) for path in sorted(work_dir.iterdir()) if is_run_folder(path)]
    run.table([HEADINGS, *map(status_cells, statuses)])
    if not statuses:
        run.result(f"no run in {work_dir}; a run is a folder that a relevance command has worked in")
    bad = [status for status in statuses if status["problem"]]
    for status in bad:
        run.result(f"{status['run']}: {status['problem']}")
    step = bad[0]["next"] if bad else run.suggest("runs", str(work_dir))
    return {"runs": statuses, "next": step}


def is_run_folder(path: Path) -> bool:
    """Return True if a command has worked in a folder: `predict` and others leave a record and no lock."""
    return (path / ".lock").is_file() or (path / "records").is_dir()


def folder_status(run_dir: Path) -> dict[str, Any]:
    """Return state, progress, rate, time left and best evaluation of a run folder; None: unknown."""
    records = read_records(run_dir)
    working = [record for record in records if record.command not in READ_ONLY_COMMANDS]
    record = next(iter(working or records), None)
    training = training_status(run_dir, is_training=is_training(record))
    problem = describe_record(record) if record and ended_badly(record) else None
    return {
        "run": run_dir.name,
        "run_id": record.run_id if record else None,
        "command": record.command if record else None,
        "state": record.state if record else "new",
        "stage": record.stage if record else None,
        "counts": dict(record.counts) if record else {},
        "progress": {name: vars(bar) for name, bar in record.progress.items()} if record else {},
        "updated_s": record.updated_s if record else None,
        "log": record.log if record else None,
        "problem": problem,
        "next": next_step(record) if record else None,
        "training": training,
    }


def is_training(record: RunRecord | None) -> bool:
    """Return True if the command of a record is in its training stage and alive."""
    return record is not None and record.state == RUNNING and "train" in record.progress


def training_status(run_dir: Path, is_training: bool) -> dict[str, Any] | None:
    """Return steps, steps a second, seconds left, best evaluation; None if nothing was trained yet."""
    events = read_events(run_dir / "training" / "live.jsonl")
    steps = [event for event in events if isinstance(event, StepEvent)]
    if not events:
        return None
    starts = [index for index, event in enumerate(events) if isinstance(event, StartEvent)]
    since_start = events[starts[-1] if starts else 0 :]
    rate = steps_per_second([event for event in since_start if isinstance(event, StepEvent)])
    last = steps[-1] if steps else None
    seconds_left = (last.num_steps - last.step) / rate if is_training and last and rate else None
    return {
        "step": last.step if last else None,
        "num_steps": last.num_steps if last else None,
        "steps_per_s": rate,
        "left_s": seconds_left,
        "best": best_evaluation(events),
        "last_step_at_s": last.at_s if last else None,
        "is_finished": (run_dir / "trained").is_dir(),
        "has_checkpoint": any((run_dir / "training" / "checkpoints").glob("step-*")),
    }


def steps_per_second(steps: list[StepEvent]) -> float | None:
    """Return the rate over the newest steps of one start of the workers; None for fewer than two."""
    newest = steps[-RATE_STEPS:]
    seconds = newest[-1].at_s - newest[0].at_s if newest else 0.0
    return (len(newest) - 1) / seconds if seconds > 0 else None


def best_evaluation(events: list[TrainingEvent]) -> dict[str, Any] | None:
    """Return step and macro PR-AUC of the best evaluation on the valid split."""
    best: dict[str, Any] | None = None
    for event in events:
        if isinstance(event, StartEvent) and event.best:  # reached by an earlier command
            best = {"step": event.best.step, "macro_pr_auc": event.best.macro_pr_auc}
        if isinstance(event, EvaluationEvent) and event.is_best:
            best = {"step": event.evaluated_after, "macro_pr_auc": event.macro_pr_auc}
    return best


def status_cells(status: dict[str, Any]) -> tuple[str, ...]:
    """Return the table row of one run folder."""
    training, counts = status["training"] or {}, status["counts"]
    best = training.get("best")
    progress, rate, left = "", "", None
    if "units" in counts:
        failed = f", {counts['units_failed']:,} failed" if counts["units_failed"] else ""
        progress = f"{counts['units_done']:,}/{counts['units']:,} units{failed}"
        rate, left = f"{counts.get('pairs_per_s', 0.0):.1f} pairs/s", counts.get("left_s")
    elif training.get("step"):
        progress = f"{training['step']:,}/{training['num_steps']:,} steps"
        rate = f"{training['steps_per_s']:.2f} steps/s" if training["steps_per_s"] else ""
        left = training["left_s"]
    is_running = status["state"] == RUNNING
    return (
        status["run"],
        status["command"] or "",
        status["state"],
        progress,
        rate if is_running else "",
        time_span(left) if is_running and left is not None else "",
        f"{best['macro_pr_auc']:.3f} after step {best['step']:,}" if best else "",
        f"{time_span(time.time() - status['updated_s'])} ago" if status["updated_s"] else "",
    )


def time_span(seconds: float) -> str:
    """Return a length of time in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
