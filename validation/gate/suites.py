"""Great Expectations suites of a data folder, one for all tasks with the same rules.

A suite costs over a second however few rows it sees, so tasks share it.
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
    build_checks,
    build_frame,
    build_suite,
    failing_rows,
    rules_key,
)
from validation.gate.file_checks import FileVerdict
from validation.gate.schema_checks import build_schema_frame, build_schema_suite
from validation.gate.script_checks import build_script_frame, build_script_suite, foreign_counts
from validation.text.scripts import SCRIPT_COLUMNS

FRAME_ROWS = 20_000  # rows that Great Expectations sees of the tasks that share a suite

MIN_TASK_ROWS = 1_000  # of each of them, however many share it

TaskFiles = tuple[Task, Sequence[FileVerdict]]


@dataclass(frozen=True)
class TaskGroup:
    """Tasks with the same rules, and their files."""

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
    for group in group_tasks(tasks, lambda task: rules_key(task, labels_required)):
        sample = read_sample(group)
        if sample is not None:
            disagreements += _run_row_suite(group, labels_required, sample, docs)
    with_scripts = [member for member in tasks if member[0].name in config.scripts]
    for group in group_tasks(with_scripts, lambda task: config.scripts[task.name]):
        if group.files:
            disagreements += _run_script_suite(group, config, docs)
    return disagreements


def group_tasks(tasks: Iterable[TaskFiles], key: Callable[[Task], Hashable]) -> list[TaskGroup]:
    """Group tasks by a key, in the order of each group's first task."""
    groups: dict[Hashable, list[TaskFiles]] = {}
    for member in tasks:
        groups.setdefault(key(member[0]), []).append(member)
    return [TaskGroup(members) for members in groups.values()]


def read_sample(group: TaskGroup) -> pa.Table | None:
    """Return up to FRAME_ROWS rows of a group, equally many of each task; None if no file was read."""
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


def _run_row_suite(group: TaskGroup, labels_required: bool, sample: pa.Table, docs: DataDocs) -> list[str]:
    task = group.members[0][0]  # the checks of the others are equal
    suite = build_suite(task, group.name, labels_required)
    by_suite = docs.run_suite(suite, build_frame(sample), ", ".join(group.task_names))
    by_mask = {}
    for check in build_checks(task, labels_required):
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
