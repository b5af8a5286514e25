"""The door of the pipeline: rows come in file by file; good ones go on, bad ones go to quarantine, a verdict
with Data Docs comes out.

    <work>/partitions/<key>/                       what was found in one file, by its sha256
    <work>/quarantine/task=<name>/<file>.parquet   rows set aside, with their numbers and reasons
    <work>/data_docs/, <work>/report.json
    <accepted>/task=<name>/<file>.parquet          all other rows; the file itself where none was set aside

A file is read again only when its bytes or the rules change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.gates import GateConfig
from pipeline.config.tasks import Task
from pipeline.data.parallel_map import map_in_order
from pipeline.data.reader import find_partitions
from pipeline.storage.filesystem import json_sha256, publish_dir, remove_tree, temporary_beside, write_json
from validation.gate.cross_file_checks import CONFLICT, REPEATED_ID, REPEATED_PAIR, Repeats, find_repeats
from validation.gate.data_docs import DataDocs, readable
from validation.gate.expectations import (
    build_checks,
    build_frame,
    build_schema_frame,
    build_schema_suite,
    build_suite,
    failing_rows,
)
from validation.gate.file_checks import PartitionJob, PartitionVerdict, judge_partition
from validation.gate.quarantine import PartedRows
from validation.gate.report import FileRecord, TaskRecord, ValidationReport
from validation.gate.script_checks import build_mix_frame, build_mix_suite, foreign_share, mix_sentences
from validation.text.scripts import MIXED_COLUMNS

Progress = Callable[[str, int, int], None]  # file just read, files read so far, files in all

FRAME_ROWS = 20_000  # rows of a task that Great Expectations sees

HARMLESS = {REPEATED_PAIR}  # kept once: nothing is lost, so it refuses nothing


@dataclass(frozen=True)
class Judged:
    """All verdicts of a data folder, and what the files show together."""

    verdicts: list[PartitionVerdict]
    repeats: Repeats

    def of_task(self, task: Task) -> list[tuple[PartitionVerdict, dict[str, np.ndarray]]]:
        """The task's files, each with its rows set aside for what other files hold."""
        return [
            (v, rows) for v, rows in zip(self.verdicts, self.repeats.rows, strict=True) if v.task == task.name
        ]


@dataclass(frozen=True)
class GateRun:
    """What is judged, by which rules, and where the answer goes."""

    data_dir: Path
    tasks: Sequence[Task]
    out_dir: Path  # gets report.json, data_docs/, quarantine/ and partitions/
    accepted_dir: Path | None = None  # gets the good rows, if the data pass
    judged: bool = True  # whether each row must carry a label
    config: GateConfig = GateConfig()

    def jobs(self, partitions: Mapping[str, Sequence[Path]]) -> list[PartitionJob]:
        """One job for each file, task by task."""
        return [
            PartitionJob(
                path,
                path.relative_to(self.data_dir).as_posix(),
                task,
                self.judged,
                self.out_dir / "partitions",
                self.config.scripts.get(task.name, ()),
            )
            for task in self.tasks
            for path in partitions.get(task.name, ())
        ]


def validate(run: GateRun, progress: Progress | None = None) -> ValidationReport:
    """Judge every file of the run's data folder; writes the folders that the module draws and, last,
    report.json. Rows are accepted only if the data pass; what lay in the accepted folder before goes either
    way.

    DataRefusedError: there is no file at all. ConfigError: no such folder or task.
    """
    partitions = find_partitions(run.data_dir, run.tasks)
    # while the question is open, an older answer must not stand
    (run.out_dir / "report.json").unlink(missing_ok=True)
    if run.accepted_dir is not None:
        remove_tree(run.accepted_dir)
    present = [task for task in run.tasks if task.name in partitions]
    jobs = run.jobs(partitions)
    verdicts: list[PartitionVerdict] = []
    for verdict in map_in_order(judge_partition, jobs, threads=True):
        verdicts.append(verdict)
        if progress:
            progress(verdict.relative, len(verdicts), len(jobs))
    found = Judged(verdicts, find_repeats(verdicts, run.config.label_conflicts))
    remove_old_partitions(run.out_dir / "partitions", verdicts)
    records = {task.name: task_record(task, found) for task in present}
    failures: list[str] = []
    warnings = [
        f"task={t.name}: the task is configured, and {run.data_dir} holds no file of it"
        for t in run.tasks
        if t not in present
    ]
    for task in present:
        refusals, notes = told(task, found, records[task.name], run.config, run.judged)
        failures += refusals
        warnings += notes
    quarantine_dir, wanted_dir = run.out_dir / "quarantine", None if failures else run.accepted_dir
    # rows are parted by Arrow while Great Expectations keeps Python busy
    with PartedRows(run.data_dir, verdicts, found.repeats.rows, quarantine_dir, wanted_dir) as parted:
        failures += judge_by_expectations(run, present, found, failures, warnings)
        accepted = parted.counts()
        parted.publish(quarantine_dir)
        if wanted_dir is not None and not failures:
            parted.publish(wanted_dir)
    digests = {task.name: sorted(v.sha256 for v, _ in found.of_task(task)) for task in present}
    files = [FileRecord(v.relative, v.rows, n, v.sha256) for v, n in zip(verdicts, accepted, strict=True)]
    report = ValidationReport(
        passed=not failures,
        judged=run.judged,
        data_dir=run.data_dir,
        data_docs=run.out_dir / "data_docs" / "index.html",
        data_digest=json_sha256(digests),
        damaged=tuple(v.relative for v in verdicts if v.damaged),
        tasks=records,
        files=tuple(files),
        failures=tuple(failures),
        warnings=tuple(warnings),
    )
    write_json(run.out_dir / "report.json", report.as_json())
    return report


def remove_old_partitions(folder: Path, verdicts: Sequence[PartitionVerdict]) -> None:
    """Forget files that are no longer there."""
    used = {Path(verdict.folder).name for verdict in verdicts}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and path.name not in used and not path.name.startswith("."):
            remove_tree(path)
            (folder / f".{path.name}.lock").unlink(missing_ok=True)


def task_record(task: Task, found: Judged) -> TaskRecord:
    """What a task's files hold."""
    reasons: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    read = aside = 0
    for verdict, repeated in found.of_task(task):
        if verdict.refused:
            continue
        read += verdict.rows
        aside += verdict.bad_rows + sum(len(rows) for rows in repeated.values())
        reasons.update(verdict.failing)
        reasons.update({reason: len(rows) for reason, rows in repeated.items()})
        labels.update(dict(zip(task.labels, verdict.label_counts, strict=True)))
    counts = {name: labels[name] for name in task.labels}
    return TaskRecord(
        read,
        read - aside,
        aside,
        dict(sorted(reasons.items())),
        counts,
        found.repeats.conflicting_pairs.get(task.name, 0),
    )


def told(
    task: Task, found: Judged, record: TaskRecord, config: GateConfig, judged: bool
) -> tuple[list[str], list[str]]:
    """(why the task's data are refused, what else is worth knowing)."""
    where = f"task={task.name}"
    failures = [f"{v.relative}: {v.refused}; no row was read" for v, _ in found.of_task(task) if v.refused]
    if not record.accepted and (record.read or not failures):
        failures.append(
            f"{where}: the table must hold at least one good row; its files hold {record.read:,} rows, "
            "and all were set aside"
        )
    if task.name in config.scripts:
        failures += mix_sentences(
            [v for v, _ in found.of_task(task)], config.scripts[task.name], config.max_foreign_share
        )
    serious = record.quarantined - sum(record.reasons.get(reason, 0) for reason in HARMLESS)
    too_many = serious > config.max_quarantined_share * record.read
    if too_many:
        bad = f"{serious:,} of {record.read:,} rows are bad"
        failures.append(
            f"{where}: {bad}, more than gate.max_quarantined_share, {config.max_quarantined_share:.2%}"
        )
    warnings = []
    for reason, sentence in row_sentences(task, found, judged):
        over = too_many or record.reasons[reason] > config.max_reason_share * record.read
        if over and reason not in HARMLESS:
            failures.append(sentence)
        else:
            warnings.append(f"set aside: {sentence}")
    if record.conflicting_pairs:
        rows = found.repeats.conflicting_rows[task.name]
        pairs = f"{record.conflicting_pairs:,} query-ad pairs carry more than one label, in {rows:,} rows"
        warnings.append(f"{where}: {pairs}; gate.label_conflicts is {config.label_conflicts}")
    return failures, warnings


def row_sentences(task: Task, found: Judged, judged: bool) -> Iterator[tuple[str, str]]:
    """(reason, sentence) for each file and reason of rows set aside."""
    promises = {check.name: (check.column, check.promise) for check in build_checks(task, judged)}
    for verdict, repeated in found.of_task(task):
        for reason, number in sorted(verdict.failing.items()):
            column, promise = promises.get(reason, ("row_id", "stand in a row whose texts are all UTF-8"))
            examples = verdict.examples[reason]
            shown = "; ".join(
                f"row {row:,} (row_id {readable(row_id)}) holds {readable(value)}"
                for row, row_id, value in examples
            )
            more = "; ..." if number > len(examples) else ""
            yield (
                reason,
                (
                    f"{verdict.relative}: column {column} must {promise}; {number:,} of "
                    f"{verdict.rows:,} rows "
                    f"break this: {shown}{more}"
                ),
            )
        words = {
            REPEATED_ID: "column row_id must be unique among all files",
            REPEATED_PAIR: "a query and ad with equal labels are kept once",
            CONFLICT: "a query and ad must not carry unlike labels",
        }
        for reason, rows in repeated.items():
            first = ", ".join(f"{row:,}" for row in rows[:3].tolist())
            yield (
                reason,
                (
                    f"{verdict.relative}: {words[reason]}; {len(rows):,} of {verdict.rows:,} rows repeat "
                    f"another: row {first}"
                ),
            )


def judge_by_expectations(
    run: GateRun, tasks: Sequence[Task], found: Judged, failures: Sequence[str], warnings: Sequence[str]
) -> list[str]:
    """Run the suites on samples that hold offending rows of every kind, and write the Data Docs. Returns what
    contradicts the row masks.
    """
    staged = temporary_beside(run.out_dir / "data_docs")
    disagreements = []
    try:
        docs = DataDocs(staged)
        for task in tasks:
            files = [verdict for verdict, _ in found.of_task(task)]
            strangers = {tuple(v.differences): v for v in files if v.differences}
            for number, verdict in enumerate(strangers.values(), 1):
                schema = pa.schema([(name, pa.string()) for name, _ in verdict.schema])
                frame = build_schema_frame(schema)
                frame.iloc[0] = [kind for _, kind in verdict.schema]
                # no task can be called this: + is outside the name rule
                docs.judge(build_schema_suite(f"{task.name}+schema-{number}", schema.names), frame)
            sample = read_samples(files)
            if sample is not None:
                disagreements += compare(task, run.judged, sample, docs)
            if sample is not None and task.name in run.config.scripts:
                disagreements += compare_mix(
                    task, run.config, [verdict for verdict in files if not verdict.refused], docs
                )
        docs.write([*failures, *disagreements], warnings)
        publish_dir(staged, run.out_dir / "data_docs")
    finally:
        remove_tree(staged)
    return disagreements


def read_samples(files: Sequence[PartitionVerdict]) -> pa.Table | None:
    """Rows of some files, those with bad rows first; None if no file was read."""
    tables: list[pa.Table] = []
    for verdict in sorted((v for v in files if not v.refused), key=lambda v: not v.bad_rows):
        tables.append(pq.read_table(Path(verdict.folder) / "sample.parquet"))
        if sum(table.num_rows for table in tables) >= FRAME_ROWS:
            break
    return pa.concat_tables(tables).slice(0, FRAME_ROWS) if tables else None


def compare(task: Task, judged: bool, sample: pa.Table, docs: DataDocs) -> list[str]:
    """Great Expectations and the row masks on the same rows: a sentence for each check on which they
    differ.
    """
    verdict = docs.judge(build_suite(task, judged), build_frame(sample))
    checks = build_checks(task, judged)
    kept = {
        check.name: bool(sample.num_rows)
        if check.name == "row_count"
        else not len(failing_rows(check, sample))
        for check in checks
    }
    return contradictions(task, verdict, kept)


def compare_mix(
    task: Task, config: GateConfig, files: Sequence[PartitionVerdict], docs: DataDocs
) -> list[str]:
    """The same for the scripts of whole files."""
    scripts, max_share = config.scripts[task.name], config.max_foreign_share
    verdict = docs.judge(build_mix_suite(task.name, scripts, max_share), build_mix_frame(files))
    return contradictions(
        task,
        verdict,
        {
            f"{name}_scripts": all(foreign_share(v, name) <= max_share for v in files)
            for name in MIXED_COLUMNS
        },
    )


def contradictions(task: Task, verdict: Mapping[str, bool], kept: Mapping[str, bool]) -> list[str]:
    """A sentence for each check that Great Expectations' `verdict` and our own `kept` tell differently."""
    said = {True: "kept", False: "broken"}
    return [
        f"task={task.name}: {name} is {said[verdict[name]]} for Great Expectations and "
        f"{said[is_kept]} for the row masks; this is a defect of the"
        " pipeline, please report it"
        for name, is_kept in kept.items()
        if verdict[name] != is_kept
    ]
