"""The door of the pipeline: judged or unjudged rows come in, a verdict with reasons and Data Docs comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataRefusedError
from pipeline.files import file_sha256, publish_dir, remove_tree, temporary_beside, write_json
from pipeline.reader import data_digest, find_partitions, open_partition, read_partition
from pipeline.schema import ROW_SCHEMA, SCHEMA_VERSION, schema_difference
from pipeline.tasks import Task, check_known_task
from validation.conflicts import find_conflicts
from validation.data_docs import NUM_EXAMPLES, DataDocs, readable
from validation.expectations import (
    build_checks,
    build_frame,
    build_schema_frame,
    build_schema_suite,
    build_suite,
    failing_rows,
    repeated_values,
)

Progress = Callable[[str, int, int], None]  # file just read, files read so far, files in all

MAX_LISTED_FAILURES = 10  # in an error message; the report holds them all


@dataclass(frozen=True)
class FileRecord:
    """One parquet file that was judged."""

    path: str  # relative to the data folder
    rows: int
    sha256: str


@dataclass(frozen=True)
class ValidationReport:
    """The verdict on one data folder. The same bytes and tasks give the same report."""

    passed: bool
    judged: bool  # whether each row had to carry a label
    data_dir: Path
    data_docs: Path  # index.html
    data_digest: str
    rows: Mapping[str, int]  # by task
    label_counts: Mapping[str, Mapping[str, int]]  # by task and label name; rows without a label on the scale are in none
    conflicting_pairs: Mapping[str, int]  # by task: pairs that carry more than one label
    files: tuple[FileRecord, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as a json value; the Data Docs' path is relative to the report, so that the folder can be moved."""
        docs = f"{self.data_docs.parent.name}/{self.data_docs.name}"
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "data_dir": str(self.data_dir), "data_docs": docs}


@dataclass
class _TaskRows:
    """What was read of one task: rows of the files that follow the contract, schemas of those that do not."""

    task: Task
    paths: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # row number at which each file begins
    table: pa.Table = field(default_factory=lambda: ROW_SCHEMA.empty_table())
    strangers: dict[tuple[str, ...], tuple[pa.Schema, list[str]]] = field(default_factory=dict)  # differences: schema, paths


def validate(
    data_dir: Path, tasks: Sequence[Task], out_dir: Path, judged: bool = True, progress: Progress | None = None,
) -> ValidationReport:
    """Judge every file of `data_dir`; writes `out_dir`/data_docs and, last, `out_dir`/report.json, whether the data pass or not.

    DamagedInputError: a file is not whole parquet. DataRefusedError: there is no file at all. ConfigError: no such folder or task.
    """
    (out_dir / "report.json").unlink(missing_ok=True)  # while the question is open, an older answer must not stand
    partitions = find_partitions(data_dir, tasks)
    staged = temporary_beside(out_dir / "data_docs")
    try:
        docs, gate = DataDocs(staged), _Gate(data_dir, judged, progress, sum(map(len, partitions.values())))
        for name, paths in partitions.items():
            gate.judge_task(docs, check_known_task(name, tasks, str(data_dir)), paths)
        gate.judge_together()
        absent = [task.name for task in tasks if task.name not in partitions]
        gate.warnings += [f"task={name}: the task is configured, and {data_dir} holds no file of it" for name in absent]
        docs.write(gate.failures, gate.warnings)
        publish_dir(staged, out_dir / "data_docs")
    finally:
        remove_tree(staged)
    report = ValidationReport(
        passed=not gate.failures, judged=judged, data_dir=data_dir, data_docs=out_dir / "data_docs" / "index.html",
        data_digest=data_digest(partitions), rows=gate.rows, label_counts=gate.label_counts,
        conflicting_pairs=gate.conflicting_pairs, files=tuple(gate.files),
        failures=tuple(gate.failures), warnings=tuple(gate.warnings),
    )
    write_json(out_dir / "report.json", report.as_json())
    return report


def check_report(report: ValidationReport) -> None:
    """DataRefusedError naming what is wrong, where the Data Docs are and what to do, unless the report passed."""
    if report.passed:
        return
    listed = [f"  - {failure}" for failure in report.failures[:MAX_LISTED_FAILURES]]
    num_unlisted = len(report.failures) - len(listed)
    if num_unlisted:
        listed.append(f"  - and {num_unlisted} more, see {report.data_docs.parent.parent / 'report.json'}")
    raise DataRefusedError("\n".join([
        f"the data in {report.data_dir} are refused:", *listed,
        f"Data Docs: {report.data_docs}", "correct or remove these rows at their source and run `relevance validate` again",
    ]))


class _Gate:
    """Gathers what a report holds, one task at a time; of earlier tasks only the row_ids stay in memory."""

    def __init__(self, data_dir: Path, judged: bool, progress: Progress | None, num_files: int) -> None:
        self.data_dir, self.judged, self.progress, self.num_files = data_dir, judged, progress, num_files
        self.rows: dict[str, int] = {}
        self.label_counts: dict[str, dict[str, int]] = {}
        self.conflicting_pairs: dict[str, int] = {}
        self.files: list[FileRecord] = []
        self.failures: list[str] = []
        self.warnings: list[str] = []
        self._read: list[_TaskRows] = []

    def judge_task(self, docs: DataDocs, task: Task, paths: Sequence[Path]) -> None:
        """Read the files of one task and judge them by masks and by Great Expectations."""
        first_file = len(self.files)
        read = self._read_task(task, paths)
        self.rows[task.name] = sum(record.rows for record in self.files[first_file:])
        labels = read.table["label"]
        self.label_counts[task.name] = {name: int(pc.sum(pc.equal(labels, i)).as_py() or 0) for i, name in enumerate(task.labels)}
        self._judge_schemas(docs, read)
        if read.paths:
            self._judge_rows(docs, read)
            self._count_conflicts(read)
        read.table = read.table.select(["row_id"])
        self._read.append(read)

    def judge_together(self) -> None:
        """What no task can see alone: a row_id that two tasks use."""
        used = [pc.unique(read.table["row_id"]) for read in self._read]
        shared = repeated_values(pa.chunked_array(used, pa.string()))
        for read in self._read if len(shared) else []:
            rows = np.flatnonzero(pc.is_in(read.table["row_id"], value_set=shared).to_numpy())
            self.failures += _row_failures(read, "row_id", "be used by no other task", rows)

    def _read_task(self, task: Task, paths: Sequence[Path]) -> _TaskRows:
        read, tables, num_rows = _TaskRows(task), [], 0
        for path in paths:
            relative = path.relative_to(self.data_dir).as_posix()
            with open_partition(path) as file:
                schema, rows_in_file = file.schema_arrow, file.metadata.num_rows
            differences = tuple(schema_difference(schema))
            if differences:
                read.strangers.setdefault(differences, (schema, []))[1].append(relative)
            else:
                tables.append(read_partition(path))
                read.paths.append(relative)
                read.starts.append(num_rows)
                num_rows += rows_in_file
            self.files.append(FileRecord(relative, rows_in_file, file_sha256(path)))
            if self.progress:
                self.progress(relative, len(self.files), self.num_files)
        if tables:
            read.table = pa.concat_tables(tables)
        return read

    def _judge_schemas(self, docs: DataDocs, read: _TaskRows) -> None:
        for i, (differences, (schema, paths)) in enumerate(read.strangers.items(), 1):
            others = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
            self.failures.append(f"{paths[0]}{others}: {'; '.join(differences)}; no row was read")
            # No task can be called this: + is outside the name rule.
            docs.judge(build_schema_suite(f"{read.task.name}+schema-{i}", schema.names), build_schema_frame(schema))

    def _judge_rows(self, docs: DataDocs, read: _TaskRows) -> None:
        verdict = docs.judge(build_suite(read.task, self.judged), build_frame(read.table))
        where = f"task={read.task.name}"
        if not read.table.num_rows:
            self.failures.append(f"{where}: the table must hold at least one row; {len(read.paths)} files hold none")
        for check in build_checks(read.task, self.judged):
            rows = failing_rows(check, read.table)
            self.failures += _row_failures(read, check.column, check.promise, rows)
            kept = bool(read.table.num_rows) if check.name == "row_count" else not len(rows)
            if verdict[check.name] != kept:
                gx_says, masks_say = ("kept", "broken") if verdict[check.name] else ("broken", "kept")
                self.failures.append(f"{where}: {check.name} is {gx_says} for Great Expectations and {masks_say} for the row "
                                     "masks; this is a defect of the pipeline, please report it")

    def _count_conflicts(self, read: _TaskRows) -> None:
        conflicts = find_conflicts(read.table, len(read.task.labels))
        self.conflicting_pairs[read.task.name] = conflicts.num_pairs
        if conflicts.num_pairs:
            examples = "; ".join(" and ".join(f"{readable(row_id)} says {read.task.labels[label]}" for row_id, label in example)
                                 for example in conflicts.examples)
            self.warnings.append(f"task={read.task.name}: {conflicts.num_pairs:,} query-ad pairs carry more than one label, "
                                 f"in {conflicts.num_rows:,} rows: {examples}")


def _row_failures(read: _TaskRows, column: str, promise: str, rows: np.ndarray) -> Iterator[str]:
    """One sentence for each file that holds some of the failing `rows` (row numbers of the task's table, rising)."""
    file_of_row = np.searchsorted(read.starts, rows, side="right") - 1
    for i in np.unique(file_of_row):
        in_file = rows[file_of_row == i]
        end = read.starts[i + 1] if i + 1 < len(read.starts) else read.table.num_rows
        examples = read.table.select(list(dict.fromkeys(("row_id", column)))).take(in_file[:NUM_EXAMPLES]).to_pylist()
        shown = [f"row {row - read.starts[i]:,} (row_id {readable(values['row_id'])}) holds {readable(values[column])}"
                 for row, values in zip(in_file, examples, strict=False)]
        yield (f"{read.paths[i]}: column {column} must {promise}; {len(in_file):,} of {end - read.starts[i]:,} rows break this: "
               f"{'; '.join(shown)}{'; ...' if len(in_file) > NUM_EXAMPLES else ''}")
