"""`relevance runs`: the history of all commands, and one command in detail."""

import time
from pathlib import Path
from typing import Any

from jobs.command_run import CommandRun
from jobs.run_texts import describe_record, ended_badly, next_step
from pipeline.errors import ConfigError
from pipeline.runtime.run_log import read_log
from pipeline.runtime.run_record import RunRecord, read_all_records

HEADINGS = ("run id", "run", "command", "state", "started (UTC)", "seconds", "rows", "labels", "exit code")

SHOWN_ERRORS = 10


def run_runs(target: str, work_dir: Path, as_json: bool, run: CommandRun) -> dict[str, Any]:
    """List the records of a work_dir, or show the one whose run id is `target`.

    Raises:
        ConfigError: `target` is neither a folder nor a known run id.
    """
    if Path(target).is_dir():
        return _list_runs(Path(target), as_json, run)
    records = read_all_records(work_dir) if work_dir.is_dir() else []
    for record in records:
        if record.run_id == target:
            return _show_run(record, as_json, run)
    raise ConfigError(
        f"run not found: {target} is no folder and no run id in {work_dir}; list the run ids with "
        "`relevance runs WORK_DIR`, and name the work_dir with --work-dir"
    )


def record_summary(record: RunRecord) -> dict[str, Any]:
    """Return the fields of a record that the list shows, as a JSON value."""
    labels = record.counts.get("labels")
    return {
        "run_id": record.run_id,
        "run": record.name,
        "command": record.command,
        "state": record.state,
        "started_s": record.started_s,
        "seconds": round(record.seconds, 3),
        "rows": record.counts.get("rows"),
        "labels": sum(labels.values()) if isinstance(labels, dict) else labels,
        "exit_code": record.exit_code,
        "reason": record.reason,
        "log": record.log,
        "next": next_step(record),
    }


def _list_runs(work_dir: Path, as_json: bool, run: CommandRun) -> dict[str, Any]:
    records = read_all_records(work_dir)
    summaries = [record_summary(record) for record in records]
    if not as_json:
        run.table([HEADINGS, *map(_summary_cells, summaries)])
    bad = [record for record in records if ended_badly(record)]
    shown = (bad or records)[:1]
    words = ("runs", shown[0].run_id, "--work-dir", str(work_dir)) if shown else ("demo",)
    return {"runs": summaries, "next": run.suggest(*words)}


def _summary_cells(summary: dict[str, Any]) -> tuple[str, ...]:
    def number(value: Any) -> str:
        return "" if value is None else f"{value:,}"

    return (
        summary["run_id"],
        summary["run"] or "",
        summary["command"],
        summary["state"],
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(summary["started_s"])),
        f"{summary['seconds']:,.1f}",
        number(summary["rows"]),
        number(summary["labels"]),
        number(summary["exit_code"]),
    )


def _show_run(record: RunRecord, as_json: bool, run: CommandRun) -> dict[str, Any]:
    errors = [
        line for line in read_log(Path(record.log)) if line.get("level") in ("error", "critical", "warning")
    ]
    shown = errors[-SHOWN_ERRORS:]
    if not as_json:
        run.result(describe_record(record))
        run.table(
            [
                ("started", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.started_s))),
                ("seconds", f"{record.seconds:,.1f}"),
                ("host, process", f"{record.host}, {record.pid}"),
                ("arguments", " ".join(record.arguments)),
                *((name, str(value)) for name, value in record.counts.items()),
            ]
        )
        run.result(f"last warnings and errors in the log: {len(shown)}")
        for line in shown:
            unit = f", unit {line['work_unit']}" if line.get("work_unit") else ""
            run.result(f"  {line['time']} {line['level']} {line['process']}{unit}: {line['message']}")
    return {**record.to_json(), "errors": shown, "next": next_step(record)}
