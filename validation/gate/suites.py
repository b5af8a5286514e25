"""Great Expectations suites of a data folder: one for all tasks, and small ones for their differences.

Each check of a suite costs time however few rows it sees, nearly two seconds for all checks of a row. So
tasks share a suite. A check that differs between tasks, such as the range of their labels, is in a suite of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.gates import GateConfig
from pipeline.config.tasks import Task
from validation.gate.data_docs import DataDocs
from validation.gate.expectations import (
    Check,
    build_check_suite,
    build_checks,
    build_frame,
    check_key,
    failing_rows,
)
from validation.gate.file_checks import FileVerdict
from validation.gate.schema_checks import build_schema_frame, build_schema_suite
from validation.gate.script_checks import build_script_frame, build_script_suite, foreign_counts
from validation.text.scripts import SCRIPT_COLUMNS

# rows that Great Expectations sees of the tasks that share a suite, unless MIN_TASK_ROWS of each is more
FRAME_ROWS = 20_000

MIN_TASK_ROWS = 1_000  # of each of them, however many share it

TaskFiles = tuple[Task, Sequence[FileVerdict]]


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that share a suite, and their files."""

    members: Sequence[TaskFiles]

    @property
    def name(self) -> str:
        """Name of the group's suite: the first task, and how many follow.

        No task can have the name of a larger group: + is outside the name rule.
        """
        first = self.members[0][0].name
        return first if len(self.members) == 1 else f"{first}+{len(self.members) - 1}"

    @property
    def task_names(self) -> list[str]:
        """Names of the group's tasks."""
        return [task.name for task, _ in self.members]

    @property
    def files(self) -> list[FileVerdict]:
        """Verdicts on the files that were read."""
        return [verdict for _, files in self.members for verdict in files if not verdict.refused]


def run_suites(
    docs: DataDocs, tasks: Sequence[TaskFiles], labels_required: bool, config: GateConfig
) -> list[str]:
    """Run the suites on samples that hold bad rows where there are any.

    Returns:
        A message for each check on which Great Expectations and the row masks disagree.
    """
    disagreements = []
    _run_schema_suites(tasks, docs)
    shared, others = split_checks([task for task, _ in tasks], labels_required)
    disagreements += _run_row_suite(TaskGroup(tasks), shared, docs)
    for group in group_tasks(tasks, lambda task: tuple(map(check_key, others[task.name]))):
        disagreements += _run_row_suite(group, others[group.task_names[0]], docs)
    with_scripts = [member for member in tasks if member[0].name in config.scripts]
    for group in group_tasks(with_scripts, lambda task: config.scripts[task.name]):
        if group.files:
            disagreements += _run_script_suite(group, config, docs)
    return disagreements


def split_checks(tasks: Sequence[Task], labels_required: bool) -> tuple[list[Check], dict[str, list[Check]]]:
    """Return the checks that are equal for all tasks, and the others by task."""
    checks = {task.name: build_checks(task, labels_required) for task in tasks}
    shared = set.intersection(*({check_key(check) for check in own} for own in checks.values()))
    others = {name: [c for c in own if check_key(c) not in shared] for name, own in checks.items()}
    return [check for check in checks[tasks[0].name] if check_key(check) in shared], others


def group_tasks(tasks: Iterable[TaskFiles], key: Callable[[Task], Hashable]) -> list[TaskGroup]:
    """Group tasks by a key, in the order of each group's first task."""
    groups: dict[Hashable, list[TaskFiles]] = {}
    for member in tasks:
        groups.setdefault(key(member[0]), []).append(member)
    return [TaskGroup(members) for members in groups.values()]


def read_sample(group: TaskGroup) -> pa.Table | None:
    """Return up to FRAME_ROWS rows of a group, or MIN_TASK_ROWS of each task if that is more.

    Each task has equally many. None: no file was read.
    """
    limit = max(FRAME_ROWS // len(group.members), MIN_TASK_ROWS)
    tables = [table for _, files in group.members for table in _task_sample(files, limit)]
    return pa.concat_tables(tables) if tables else None


def _task_sample(files: Sequence[FileVerdict], limit: int) -> list[pa.Table]:
    """Return up to `limit` rows of one task, those of files with bad rows first."""
    tables: list[pa.Table] = []
    for verdict in sorted((v for v in files if not v.refused), key=lambda v: not v.bad_rows):
        tables.append(pq.read_table(Path(verdict.folder) / "sample.parquet").slice(0, limit))
        limit -= tables[-1].num_rows
        if limit <= 0:
            break
    return tables


def _run_schema_suites(tasks: Sequence[TaskFiles], docs: DataDocs) -> None:
    """Run one suite for each set of differences from the contract's schema."""
    by_differences: dict[tuple[str, ...], tuple[FileVerdict, dict[str, None]]] = {}
    for task, files in tasks:
        for verdict in files:
            if verdict.differences:
                _, names = by_differences.setdefault(tuple(verdict.differences), (verdict, {}))
                names[task.name] = None
    for number, (verdict, names) in enumerate(by_differences.values(), 1):
        suite = build_schema_suite(f"{next(iter(names))}+schema-{number}", verdict.schema)
        docs.run_suite(suite, build_schema_frame(verdict.schema), f"schema of {', '.join(names)}")


def _run_row_suite(group: TaskGroup, checks: Sequence[Check], docs: DataDocs) -> list[str]:
    """Run a suite of checks that all tasks of the group share.

    If no check is about the table, the suite sees only the checked columns.
    """
    sample = read_sample(group) if checks else None
    if sample is None:
        return []
    name, title = group.name, ", ".join(group.task_names)
    columns = list(dict.fromkeys(check.column for check in checks))
    if "" not in columns:  # no check of the table, which the suite of all tasks holds
        name, title = f"{name}+columns", f"{', '.join(columns)} of {title}"
        sample = sample.select(dict.fromkeys(["row_id", *columns]))
    by_suite = docs.run_suite(build_check_suite(name, checks), build_frame(sample), title)
    by_mask = {}
    for check in checks:
        if check.name == "row_count":
            by_mask[check.name] = bool(sample.num_rows)
        else:
            by_mask[check.name] = not len(failing_rows(check, sample))
    return _disagreements(group, by_suite, by_mask)


def _run_script_suite(group: TaskGroup, config: GateConfig, docs: DataDocs) -> list[str]:
    scripts, max_share = config.scripts[group.members[0][0].name], config.max_foreign_share
    suite = build_script_suite(f"{group.name}+scripts", scripts, max_share)
    title = f"scripts of {', '.join(group.task_names)}"
    counts = foreign_counts(group.files, max_share)
    by_suite = docs.run_suite(suite, build_script_frame(counts), title)
    by_file = {
        f"{name}_scripts": all(count.share(name) <= max_share for count in counts) for name in SCRIPT_COLUMNS
    }
    return _disagreements(group, by_suite, by_file)


def _disagreements(group: TaskGroup, by_suite: Mapping[str, bool], by_mask: Mapping[str, bool]) -> list[str]:
    """Return a message for each check that passes in one engine and fails in the other."""
    outcome = {True: "passes", False: "fails"}
    return [
        f"task={', '.join(group.task_names)}: check {name} {outcome[by_suite[name]]} in Great Expectations "
        f"and {outcome[passed]} in the row masks; this is a bug of the pipeline, please report it"
        for name, passed in by_mask.items()
        if by_suite[name] != passed
    ]
