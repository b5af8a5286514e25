"""The verdict on a data folder as a value: json for programs, one screen of text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedInputError, DataRefusedError
from pipeline.schema import SCHEMA_VERSION

MAX_LISTED_FAILURES = 10  # in an error message; the report holds them all


@dataclass(frozen=True)
class FileRecord:
    """One parquet file that was judged."""

    path: str  # relative to the data folder
    rows: int  # read
    accepted: int
    sha256: str


@dataclass(frozen=True)
class TaskRecord:
    """One task's rows: read = accepted + quarantined, always."""

    read: int
    accepted: int
    quarantined: int
    reasons: Mapping[str, int]  # rows by reason; a row may have several
    label_counts: Mapping[str, int]  # of the rows read, by label name
    conflicting_pairs: int


@dataclass(frozen=True)
class ValidationReport:
    """The verdict on one data folder. The same bytes, tasks and settings give the same report."""

    passed: bool
    judged: bool  # whether each row had to carry a label
    data_dir: Path
    data_docs: Path  # index.html
    data_digest: str  # of the files as they were read
    damaged: tuple[str, ...]  # files that cannot be what they claim to be
    tasks: Mapping[str, TaskRecord]
    files: tuple[FileRecord, ...]
    failures: tuple[str, ...]  # why the data are refused
    warnings: tuple[str, ...]  # what was set aside, and what is worth knowing

    def as_json(self) -> dict[str, Any]:
        """The report as a json value; the Data Docs' path is relative to the report, so that the folder can
        be moved.
        """
        docs = f"{self.data_docs.parent.name}/{self.data_docs.name}"
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "data_dir": str(self.data_dir),
            "data_docs": docs,
        }

    @property
    def rows(self) -> dict[str, int]:
        """Rows read, by task."""
        return {name: record.read for name, record in self.tasks.items()}


def check_report(report: ValidationReport) -> None:
    """DataRefusedError, or DamagedInputError where a file is damaged, naming what is wrong, where the Data
    Docs are and what to do; nothing if the report passed.
    """
    if report.passed:
        return
    listed = [f"  - {failure}" for failure in report.failures[:MAX_LISTED_FAILURES]]
    num_unlisted = len(report.failures) - len(listed)
    if num_unlisted:
        listed.append(f"  - and {num_unlisted} more, see {report.data_docs.parent.parent / 'report.json'}")
    refusal = DamagedInputError if report.damaged else DataRefusedError
    raise refusal(
        "\n".join(
            [
                f"the data in {report.data_dir} are refused:",
                *listed,
                f"Data Docs: {report.data_docs}",
                "correct or remove these rows at their source and run `relevance validate` again",
            ]
        )
    )


def summary_table(report: ValidationReport) -> str:
    """One line a task, and the most common reasons, as aligned text."""
    rows = [("task", "read", "accepted", "quarantined", "conflicting pairs", "reasons")]
    for name, task in report.tasks.items():
        common = sorted(task.reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in common)
        rows.append(
            (
                name,
                f"{task.read:,}",
                f"{task.accepted:,}",
                f"{task.quarantined:,}",
                f"{task.conflicting_pairs:,}",
                reasons,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
