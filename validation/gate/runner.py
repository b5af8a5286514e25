"""Data gate: checks every file, quarantines bad rows, and writes a verdict with Data Docs.

    <work>/partitions/<key>/                       cached verdict on one file
    <work>/quarantine/task=<name>/<file>.parquet   quarantined rows with their numbers and reasons
    <work>/data_docs/, <work>/report.json          Data Docs; the verdict
    <accepted>/task=<name>/<file>.parquet          all other rows; a copy of the file if all are good

A file is read again only when its bytes or the rules change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.files import publish_dir, remove_abandoned, remove_tree, retire_dir, temporary_path
from pipeline.config.gates import GateConfig
from pipeline.config.splits import SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.parallel_map import map_in_order
from pipeline.data.row_files import RowFile, find_row_files
from pipeline.runtime.progress import Progress, SilentProgress
from pipeline.storage.filesystem import json_sha256, safe_join, write_json
from validation.gate.cross_file_checks import (
    LABEL_CONFLICT,
    REPEATED_ID,
    REPEATED_PAIR,
    Duplicates,
    find_duplicates,
)
from validation.gate.data_docs import DataDocs, format_value
from validation.gate.expectations import build_checks
from validation.gate.file_checks import FileJob, FileVerdict, check_file
from validation.gate.quarantine import BackgroundSplit, accepted_rows
from validation.gate.report import FileRecord, TaskRecord, ValidationReport
from validation.gate.script_checks import script_failures
from validation.gate.split_counts import count_classes, missing_classes
from validation.gate.suites import run_suites

NON_BLOCKING_REASONS = {REPEATED_PAIR}  # one row of the pair is kept, so nothing is lost

# report.json, and what `relevance validate` writes about the accepted rows
VERDICT_FILES = ("report.json", "leakage.json", "profile.json", "drift.json", "drift.png")

NUM_SHOWN_ROWS = 3  # in the message about one reason

_DUPLICATE_REQUIREMENTS = {
    REPEATED_ID: "column row_id must be unique among all files",
    REPEATED_PAIR: "a query and ad with equal labels are kept once",
    LABEL_CONFLICT: "a query and ad must not have different labels",
}


@dataclass(frozen=True)
class FolderVerdicts:
    """Verdicts on all files of a data folder, each alone and together."""

    files: list[FileVerdict]
    duplicates: Duplicates
    row_files: Mapping[str, RowFile]  # by name

    def of_task(self, task: Task) -> list[tuple[FileVerdict, dict[str, np.ndarray]]]:
        """Return the task's files, each with its duplicate rows by reason."""
        pairs = zip(self.files, self.duplicates.rows, strict=True)
        return [(verdict, rows) for verdict, rows in pairs if verdict.task == task.name]


@dataclass(frozen=True)
class GateRun:
    """Input, rules and output folders of one run of the gate."""

    data_dir: Path | str  # folder, or URL of a bucket
    tasks: Sequence[Task]
    out_dir: Path  # receives report.json, data_docs/, quarantine/ and partitions/
    accepted_dir: Path | None = None  # receives the good rows, if the data pass
    labels_required: bool = True  # True if each row must carry a label
    config: GateConfig = GateConfig()
    splits: SplitConfig | None = None  # if given, each split of a task needs rows of both classes

    @property
    def verdicts_dir(self) -> Path:
        """Folder of the cached verdicts; ConfigError if it is or is below a link: unused ones are deleted."""
        return safe_join(self.out_dir.parent, self.out_dir.name, "partitions")

    def remove_abandoned(self) -> None:
        """Delete what killed runs left."""
        remove_abandoned(self.out_dir)
        if self.accepted_dir is not None:
            remove_abandoned(self.accepted_dir.parent)

    def file_jobs(self, files: Mapping[str, Sequence[RowFile]]) -> list[FileJob]:
        """Return one job for each file, task by task."""
        verdicts_dir = self.verdicts_dir  # each reading asks the file system
        return [
            FileJob(file, task, self.labels_required, verdicts_dir, self.config.scripts.get(task.name, ()))
            for task in self.tasks
            for file in files.get(task.name, ())
        ]


def validate(run: GateRun, progress: Progress | None = None) -> ValidationReport:
    """Check every file of the run's data folder, or object of its bucket.

    Replaces the folders that the module docstring shows and, last, report.json, once all files are judged: an
    error leaves the older ones as they are. The accepted folder is removed if the data do not pass.

    Raises:
        DataRefusedError: There is no file at all.
        ConfigError: A folder or task does not exist, or the folder of the cached verdicts is a link.
    """
    found = find_row_files(run.data_dir, run.tasks)
    row_files = {file.name: file for files in found.by_task.values() for file in files}
    run.remove_abandoned()
    files = _check_files(run.file_jobs(found.by_task), progress or SilentProgress())
    duplicates = find_duplicates(files, run.config.label_conflicts, run.verdicts_dir)
    verdicts = FolderVerdicts(files, duplicates, row_files)
    _remove_stale_verdicts(run.verdicts_dir, files)
    tasks = [task for task in run.tasks if task.name in found.by_task]
    records = {task.name: task_record(task, verdicts) for task in tasks}
    failures, warnings = folder_messages(run, tasks, verdicts, records)
    warnings += [found.skipped] if found.skipped else []
    quarantine_dir = run.out_dir / "quarantine"
    accepted_dir = None if failures else run.accepted_dir
    # Arrow splits the files in the background while Great Expectations keeps Python busy
    with BackgroundSplit(row_files, files, duplicates.rows, quarantine_dir, accepted_dir) as split:
        failures += write_data_docs(run, tasks, verdicts, failures, warnings)
        accepted = split.accepted_counts()
        for name in VERDICT_FILES:  # killed from here on: no verdict
            (run.out_dir / name).unlink(missing_ok=True)
        split.publish(quarantine_dir)
        if accepted_dir is not None and not failures:
            split.publish(accepted_dir)
        elif run.accepted_dir is not None:
            retire_dir(run.accepted_dir)
    digests = {task.name: sorted(v.sha256 for v, _ in verdicts.of_task(task)) for task in tasks}
    report = ValidationReport(
        passed=not failures,
        labels_required=run.labels_required,
        data_dir=run.data_dir,
        data_docs=run.out_dir / "data_docs" / "index.html",
        data_digest=json_sha256(digests),
        damaged=tuple(v.relative for v in files if v.damaged),
        tasks=records,
        files=tuple(
            FileRecord(v.relative, v.rows, count, v.sha256) for v, count in zip(files, accepted, strict=True)
        ),
        failures=tuple(failures),
        warnings=tuple(warnings),
    )
    write_json(run.out_dir / "report.json", report.to_json())
    return report


def _check_files(jobs: Sequence[FileJob], progress: Progress) -> list[FileVerdict]:
    verdicts: list[FileVerdict] = []
    with progress.track("validate", len(jobs), "files") as bar:
        for verdict in map_in_order(check_file, jobs, use_threads=True):
            verdicts.append(verdict)
            bar.update(len(verdicts))
    return verdicts


def _remove_stale_verdicts(folder: Path, verdicts: Sequence[FileVerdict]) -> None:
    """Delete cached verdicts on files that no longer exist, and leftovers of killed runs."""
    used = {Path(verdict.folder).name for verdict in verdicts}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and path.name not in used:
            remove_tree(path)
            (folder / f".{path.name}.lock").unlink(missing_ok=True)


def task_record(task: Task, verdicts: FolderVerdicts) -> TaskRecord:
    """Sum the counts of a task's files; a file that was refused as a whole counts nothing."""
    reasons: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    read = quarantined = 0
    for verdict, duplicates in verdicts.of_task(task):
        if verdict.refused:
            continue
        read += verdict.rows
        quarantined += verdict.bad_rows + sum(len(rows) for rows in duplicates.values())
        reasons.update(verdict.failing)
        reasons.update({reason: len(rows) for reason, rows in duplicates.items()})
        labels.update(dict(zip(task.labels, verdict.label_counts, strict=True)))
    return TaskRecord(
        read=read,
        accepted=read - quarantined,
        quarantined=quarantined,
        reasons=dict(sorted(reasons.items())),
        label_counts={name: labels[name] for name in task.labels},
        conflicting_pairs=verdicts.duplicates.conflicting_pairs.get(task.name, 0),
    )


def folder_messages(
    run: GateRun, tasks: Sequence[Task], verdicts: FolderVerdicts, records: Mapping[str, TaskRecord]
) -> tuple[list[str], list[str]]:
    """Return the reasons to refuse the data of a folder, and the warnings about them.

    Args:
        run: The run of the gate.
        tasks: Configured tasks that have a file.
        verdicts: Verdicts on all files.
        records: Row counts by task.
    """
    failures = [
        f"task={task.name}: {run.data_dir} has no file of the task; add task={task.name}/*.parquet, or take "
        "the task out of `tasks`"
        for task in run.tasks
        if task not in tasks
    ]
    warnings: list[str] = []
    for task in tasks:
        task_failures, task_warnings = verdict_messages(task, verdicts, records[task.name], run)
        failures += task_failures
        warnings += task_warnings
        if run.splits and records[task.name].accepted:
            rows = accepted_rows(verdicts.row_files, verdicts.of_task(task))
            message = missing_classes(task, count_classes(rows, task, run.splits))
            failures += [message] if message else []
    return failures, warnings


def verdict_messages(
    task: Task, verdicts: FolderVerdicts, record: TaskRecord, run: GateRun
) -> tuple[list[str], list[str]]:
    """Return the reasons to refuse a task's data, and the warnings about them."""
    config, files = run.config, [verdict for verdict, _ in verdicts.of_task(task)]
    failures = [f"{v.relative}{v.refused}; no row was read" for v in files if v.refused]
    if not record.accepted and (record.read or not failures):
        failures.append(
            f"task={task.name}: the table must hold at least one good row; its files hold {record.read:,} "
            "rows, and all were quarantined"
        )
    if task.name in config.scripts:
        failures += script_failures(files, config.scripts[task.name], config.max_foreign_share)
    num_blocking = record.quarantined - sum(record.reasons.get(r, 0) for r in NON_BLOCKING_REASONS)
    too_many = num_blocking > config.max_quarantined_share * record.read
    if too_many:
        failures.append(
            f"task={task.name}: {num_blocking:,} of {record.read:,} rows are bad, more than "
            f"gate.max_quarantined_share, {config.max_quarantined_share:.2%}"
        )
    warnings = []
    for reason, message in reason_messages(task, verdicts, run.labels_required):
        over_limit = too_many or record.reasons[reason] > config.max_reason_share * record.read
        if over_limit and reason not in NON_BLOCKING_REASONS:
            failures.append(message)
        else:
            warnings.append(f"quarantined: {message}")
    if record.conflicting_pairs:
        rows = verdicts.duplicates.conflicting_rows[task.name]
        warnings.append(
            f"task={task.name}: {record.conflicting_pairs:,} query-ad pairs have more than one label, in "
            f"{rows:,} rows; gate.label_conflicts is {config.label_conflicts}"
        )
    return failures, warnings


def reason_messages(task: Task, verdicts: FolderVerdicts, labels_required: bool) -> Iterator[tuple[str, str]]:
    """Yield (reason, message) for each file and reason of quarantined rows."""
    requirements = {
        check.name: (check.column, check.requirement) for check in build_checks(task, labels_required)
    }
    not_utf8 = ("row_id", "stand in a row whose texts are all UTF-8")
    for verdict, duplicates in verdicts.of_task(task):
        for reason, count in sorted(verdict.failing.items()):
            column, requirement = requirements.get(reason, not_utf8)
            shown = [
                f"row {row:,} (row_id {format_value(row_id)}) holds {format_value(value)}"
                for row, row_id, value in verdict.examples[reason]
            ]
            if count > len(shown):
                shown.append("...")
            yield (
                reason,
                f"{verdict.relative}: column {column} must {requirement}; {count:,} of {verdict.rows:,} rows "
                f"break this: {'; '.join(shown)}",
            )
        for reason, rows in duplicates.items():
            first = ", ".join(f"{row:,}" for row in rows[:NUM_SHOWN_ROWS].tolist())
            yield (
                reason,
                f"{verdict.relative}: {_DUPLICATE_REQUIREMENTS[reason]}; {len(rows):,} of {verdict.rows:,} "
                f"rows repeat another: row {first}",
            )


def write_data_docs(
    run: GateRun,
    tasks: Sequence[Task],
    verdicts: FolderVerdicts,
    failures: Sequence[str],
    warnings: Sequence[str],
) -> list[str]:
    """Run the suites and replace the Data Docs.

    Returns:
        A message for each check on which Great Expectations and the row masks disagree.
    """
    staged = temporary_path(run.out_dir / "data_docs")
    files = [(task, [verdict for verdict, _ in verdicts.of_task(task)]) for task in tasks]
    try:
        docs = DataDocs(staged)
        disagreements = run_suites(docs, files, run.labels_required, run.config)
        docs.write([*failures, *disagreements], warnings)
        publish_dir(staged, run.out_dir / "data_docs")
    finally:
        remove_tree(staged)
    return disagreements
