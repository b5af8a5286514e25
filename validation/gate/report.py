"""Verdict of the data gate on a data folder, as a value that is written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedInputError, DataRefusedError
from pipeline.schema import SCHEMA_VERSION

MAX_LISTED_FAILURES = 10  # in an error message; the report lists them all

NUM_SHOWN_REASONS = 3  # in a row of the summary

# recorded names do not change: keys of report.json that differ from the field's name
_JSON_KEYS = {"labels_required": "judged"}


@dataclass(frozen=True)
class FileRecord:
    """Verdict on one parquet file."""

    path: str  # relative to the data folder
    rows: int  # read
    accepted: int
    sha256: str


@dataclass(frozen=True)
class TaskRecord:
    """Row counts of one task; read = accepted + quarantined."""

    read: int
    accepted: int
    quarantined: int
    reasons: Mapping[str, int]  # rows by reason; a row may have several
    label_counts: Mapping[str, int]  # of the rows read, by label name
    conflicting_pairs: int


@dataclass(frozen=True)
class ValidationReport:
    """Verdict on one data folder; equal bytes, tasks and settings give an equal report."""

    passed: bool
    labels_required: bool  # True if each row had to carry a label
    data_dir: Path | str  # folder, or URL of a bucket
    data_docs: Path  # index.html
    data_digest: str  # of the files as they were read
    damaged: tuple[str, ...]  # files that are not whole parquet
    tasks: Mapping[str, TaskRecord]
    files: tuple[FileRecord, ...]
    failures: tuple[str, ...]  # reasons to refuse the data
    warnings: tuple[str, ...]  # quarantined rows and other notes

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value.

        The path of the Data Docs is relative to the report, so that the folder can be moved.
        """
        value = {_JSON_KEYS.get(name, name): part for name, part in asdict(self).items()}
        return {
            "schema_version": SCHEMA_VERSION,
            **value,
            "data_dir": str(self.data_dir),
            "data_docs": f"{self.data_docs.parent.name}/{self.data_docs.name}",
        }

    @property
    def rows(self) -> dict[str, int]:
        """Rows read, by task."""
        return {name: record.read for name, record in self.tasks.items()}


def check_report(report: ValidationReport) -> None:
    """Raise an error that lists the failures of a report, unless it passed.

    Raises:
        DamagedInputError: A file is damaged.
        DataRefusedError: The data are refused for another reason.
    """
    if report.passed:
        return
    listed = [*report.failures[:MAX_LISTED_FAILURES]]
    if num_unlisted := len(report.failures) - len(listed):
        listed.append(f"{num_unlisted} more in {report.data_docs.parent.parent / 'report.json'}")
    message = (
        f"data in {report.data_dir} refused: {'; '.join(listed)}; correct or remove these rows at their "
        f"source and run `relevance validate` again (Data Docs: {report.data_docs})"
    )
    raise DamagedInputError(message) if report.damaged else DataRefusedError(message)


def summary_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    """Return a heading and one row of cells per task, with the most common reasons last."""
    rows: list[tuple[str, ...]] = [
        ("task", "read", "accepted", "quarantined", "conflicting pairs", "reasons")
    ]
    for name, task in report.tasks.items():
        common = sorted(task.reasons.items(), key=lambda item: (-item[1], item[0]))[:NUM_SHOWN_REASONS]
        counts = (task.read, task.accepted, task.quarantined, task.conflicting_pairs)
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in common)
        rows.append((name, *(f"{count:,}" for count in counts), reasons))
    return rows
