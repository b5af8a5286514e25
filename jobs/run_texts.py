"""Sentences about run records, for `relevance status` and `relevance runs`."""

import shlex
import time
from pathlib import Path

from pipeline.errors import RelevanceError, RetryableError
from pipeline.inference.attempts import attempt_evidence
from pipeline.runtime.run_record import DIED, DONE, RUNNING, RunRecord

# They finish nothing in a run folder, so they must not hide how the work before them ended.
READ_ONLY_COMMANDS = ("predict", "compare", "history", "report", "export", "score --dry-run")


# A rollback that is repeated goes back one more champion.
ROLLBACK = "rollback"


def repetition_advice(command: str) -> str:
    """Return what to do about a command that ended before its result."""
    if command == ROLLBACK:
        return "look at `relevance history` first: a repeated rollback goes back one more champion"
    return "run the same command again, it continues from the last saved state"


def repetition_exit_code(command: str) -> int:
    """Return the exit code of a command that ended before its result: 3 if it may be repeated."""
    return (RelevanceError if command == ROLLBACK else RetryableError).exit_code


def interruption_reason(command: str) -> str:
    """Return the sentence about a command that was interrupted."""
    return f"interrupted; {repetition_advice(command)}"


def ended_badly(record: RunRecord) -> bool:
    """Return True if the command did not end with exit code 0."""
    return record.state not in (RUNNING, DONE)


def describe_record(record: RunRecord) -> str:
    """Return one sentence: "score died at 12 of 40 units, 3 failed, 03:31 UTC, log ..."."""
    clock = time.strftime("%H:%M UTC", time.gmtime(record.updated_s))
    parts = [f"{record.command} {record.state}{describe_position(record)}"]
    if record.counts.get("units_failed"):
        parts.append(f"{record.counts['units_failed']:,} failed")
    parts += [clock, f"log {record.log}"]
    if record.reason:
        parts.append(f"reason: {record.reason}")
    if evidence := find_evidence(record):
        parts.append(f"evidence: {', '.join(evidence)}")
    return ", ".join(parts)


def find_evidence(record: RunRecord) -> list[str]:
    """Return the files that show what a failed part was doing; a command that died could not record them."""
    if record.state != DIED:
        return list(record.evidence)
    run_dir = Path(record.log).parents[1]
    folders = [run_dir / "scoring" / record.run_id]
    folders += sorted((run_dir / "predictions").glob(f"*/attempts/{record.run_id}"))
    notes = [path for folder in folders for path in attempt_evidence(folder)]
    hangs = [path for path in (run_dir / "training").glob("hung-*.txt") if "train" in record.progress]
    return list(dict.fromkeys([*record.evidence, *map(str, [*notes, *sorted(hangs)])]))


def next_step(record: RunRecord) -> str | None:
    """Return the command to run after this one; None if there is none."""
    again = shlex.join(["relevance", *record.arguments])
    if record.state == DONE:
        return record.next
    if record.state == RUNNING:
        log = Path(record.log)
        work_dir = log.parents[1] if record.name is None else log.parents[2]
        return shlex.join(["relevance", "runs", record.run_id, "--work-dir", str(work_dir)])
    if record.command == ROLLBACK:
        return f"{again}    # after a look at `relevance history`"
    if record.state == DIED or record.exit_code == RetryableError.exit_code:
        return again
    return f"{again}    # after what the reason asks for"


def describe_position(record: RunRecord) -> str:
    """Return how far a command is, such as " at 12 of 40 units"; empty if that is not known."""
    if "units" in record.counts:
        return f" at {record.counts['units_done']:,} of {record.counts['units']:,} units"
    if record.progress:
        name, bar = list(record.progress.items())[-1]
        total = f" of {bar.total:,}" if bar.total is not None else ""
        return f" at {bar.done:,}{total} {bar.unit} ({name})"
    return f" in stage {record.stage}" if record.stage else ""
