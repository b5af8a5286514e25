"""`relevance status`: the trainings below a folder, from what they write there."""

import fcntl
import time
from pathlib import Path
from typing import Any

from jobs.console import Console
from jobs.score_progress import read_live
from pipeline.errors import ConfigError
from pipeline.training.event_log import read_line

HEADINGS = ("run", "state", "step", "steps/s", "left", "best macro PR-AUC", "last step")

RATE_STEPS = 50  # newest steps that the rate is taken over


def run_status(runs_dir: Path, console: Console) -> dict[str, Any]:
    """Print a line a run; ConfigError if there is no such folder. Returns the same as json."""
    if not runs_dir.is_dir():
        raise ConfigError(
            f"{runs_dir} does not exist; name the work_dir of your runs, or start one: relevance demo"
        )
    found = [training_status(path) for path in sorted(runs_dir.iterdir()) if (path / ".lock").is_file()]
    console.table([HEADINGS, *map(shown, found)])
    if not found:
        console.say(f"no run in {runs_dir} yet; a run is a folder that a relevance command has worked in")
    return {"runs": found}


def training_status(run_dir: Path) -> dict[str, Any]:
    """State, steps, rate (steps a second), seconds left and best evaluation of one run's training; None for
    what is not known.
    """
    lines = live_lines(run_dir / "training" / "live.jsonl")
    steps = [line for line in lines if "step" in line]
    starts = [index for index, line in enumerate(lines) if "starts_after" in line]
    last = steps[-1] if steps else None
    state, rate = (
        state_of(run_dir, last is not None),
        rate_of([line for line in lines[starts[-1] if starts else 0 :] if "step" in line]),
    )
    working = state == "training" and last is not None and rate is not None
    return {
        "run": run_dir.name,
        "state": state,
        "step": last["step"] if last else None,
        "num_steps": last["num_steps"] if last else None,
        "steps_per_s": rate,
        "left_s": (last["num_steps"] - last["step"]) / rate if working and last and rate else None,
        "best": best_of(lines),
        "last_step_at_s": last["at_s"] if last else None,
        "scoring": read_live(run_dir) if state == "scoring" else None,
    }


def state_of(run_dir: Path, has_steps: bool) -> str:
    """training, scoring: under way. working: a command that does something else. interrupted: the same
    command goes on. trained: there is a bundle. stopped: there were steps, and nothing is left of them. new:
    none of these.
    """
    interrupted = any((run_dir / "training" / "checkpoints").glob("step-*"))
    if is_locked(run_dir / ".lock"):
        under_way = [part for part in ("training", "scoring") if is_locked(run_dir / part / "active")]
        return under_way[0] if under_way else "working"
    if interrupted:
        return "interrupted"
    return "trained" if (run_dir / "trained").is_dir() else "stopped" if has_steps else "new"


def is_locked(path: Path) -> bool:
    """Whether a command holds a lock. It is asked for to share and given back at once: commands that start
    meanwhile wait for it a moment.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def live_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a live file."""
    return (
        list(filter(None, map(read_line, path.read_text(encoding="utf-8", errors="replace").split("\n"))))
        if path.is_file()
        else []
    )


def rate_of(steps: list[dict[str, Any]]) -> float | None:
    """Steps a second over the newest of the steps of one start of the workers."""
    newest = steps[-RATE_STEPS:]
    seconds = newest[-1]["at_s"] - newest[0]["at_s"] if newest else 0.0
    return (len(newest) - 1) / seconds if seconds > 0 else None


def best_of(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The best evaluation: step and macro PR-AUC."""
    best = None
    for line in lines:
        if line.get("best"):  # what an earlier command had reached
            best = {"step": line["best"]["step"], "macro_pr_auc": line["best"]["macro_pr_auc"]}
        if line.get("is_best"):
            best = {"step": line["evaluated_after"], "macro_pr_auc": line["macro_pr_auc"]}
    return best


def shown(status: dict[str, Any]) -> tuple[str, ...]:
    """One run as cells."""
    if status["scoring"]:
        return shown_scoring(status["run"], status["scoring"])
    step = f"{status['step']:,}/{status['num_steps']:,}" if status["step"] else ""
    rate = f"{status['steps_per_s']:.2f}" if status["steps_per_s"] else ""
    best = (
        f"{status['best']['macro_pr_auc']:.3f} after step {status['best']['step']:,}"
        if status["best"]
        else ""
    )
    ago = f"{span(time.time() - status['last_step_at_s'])} ago" if status["last_step_at_s"] else ""
    return (
        status["run"],
        status["state"],
        step,
        rate,
        span(status["left_s"]) if status["left_s"] is not None else "",
        best,
        ago,
    )


def shown_scoring(run: str, scoring: dict[str, Any]) -> tuple[str, ...]:
    """A scoring that is under way, as cells."""
    failed = f", {scoring['units_failed']:,} failed" if scoring["units_failed"] else ""
    units = f"{scoring['units_done']:,}/{scoring['units']:,} units{failed}"
    left = span(scoring["left_s"]) if scoring["left_s"] is not None else ""
    by_task = ", ".join(f"{task} {count:,}" for task, count in sorted(scoring["labels"].items()))
    return (
        run,
        "scoring",
        units,
        f"{scoring['pairs_per_s']:.1f} pairs",
        left,
        by_task,
        f"{span(time.time() - scoring['at_s'])} ago",
    )


def span(seconds: float) -> str:
    """A length of time, coarsely."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
