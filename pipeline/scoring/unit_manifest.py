"""Manifest of a work unit: the JSON file that makes the unit's labels visible.

Shape legend: N rows of one task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.evaluation.score_reference import Profile, build_profile
from pipeline.publishing.unit_store import PublishedFile

NATIVE_PRECISION = "native"


@dataclass(frozen=True)
class UnitInput:
    """Rows that a work unit was read from."""

    path: str
    digest: str  # of the whole file
    part: tuple[int, int] | None  # (first row, one past the last); None: all rows
    num_rows: int

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "UnitInput":
        """Parse the value of a manifest's `input`."""
        part = fields.get("part")
        return cls(fields["path"], fields["digest"], tuple(part) if part else None, fields["rows"])

    def to_json(self) -> dict[str, Any]:
        """Return the value of a manifest's `input`."""
        part = list(self.part) if self.part else None
        return {"path": self.path, "digest": self.digest, "part": part, "rows": self.num_rows}


@dataclass(frozen=True)
class UnitManifest:
    """Manifest of one work unit.

    The publishing call fills in the counts and the files.
    """

    unit_id: str
    task: str  # of the folder that the rows lie in
    input: UnitInput
    model_version: str
    bundle_sha256: str
    encoder_version: str
    tasks: tuple[str, ...]  # tasks that each row has a label of
    profiles: Mapping[str, Profile]  # by task
    all_tasks: bool  # True: rows are labeled for every task of the model, not for their own only
    num_labels: int = 0
    num_errors: int = 0
    label_files: tuple[PublishedFile, ...] = ()
    error_files: tuple[PublishedFile, ...] = ()
    published_at: str = ""  # UTC; recorded manifests may lack it
    precision: str = NATIVE_PRECISION  # other values occur only in recorded manifests

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "UnitManifest":
        """Parse a manifest.

        Raises:
            KeyError: A field is missing that every manifest has.
        """
        all_tasks = "profiles" in fields
        return cls(
            unit_id=fields["partition"],
            task=fields["task"],
            input=UnitInput.from_json(fields["input"]),
            model_version=fields["model_version"],
            bundle_sha256=fields["bundle_sha256"],
            encoder_version=fields["encoder_version"],
            tasks=tuple(fields.get("tasks") or [fields["task"]]),
            profiles=fields["profiles"] if all_tasks else {fields["task"]: fields.get("profile", {})},
            all_tasks=all_tasks,
            num_labels=fields["rows"],
            num_errors=fields.get("error_rows", 0),
            label_files=tuple(PublishedFile(**file) for file in fields["files"]),
            error_files=tuple(PublishedFile(**file) for file in fields.get("error_files", ())),
            published_at=fields.get("published_at", ""),
            precision=fields.get("precision", NATIVE_PRECISION),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as it is recorded."""
        fields: dict[str, Any] = {
            "partition": self.unit_id,
            "task": self.task,
            "input": self.input.to_json(),
            "model_version": self.model_version,
            "bundle_sha256": self.bundle_sha256,
            "encoder_version": self.encoder_version,
            "rows": self.num_labels,
            "error_rows": self.num_errors,
            "published_at": self.published_at,
            "files": [asdict(file) for file in self.label_files],
        }
        if self.all_tasks:
            fields |= {"tasks": list(self.tasks), "profiles": dict(self.profiles)}
        else:
            fields["profile"] = self.profiles[self.task]
        if self.error_files:
            fields["error_files"] = [asdict(file) for file in self.error_files]
        if self.precision != NATIVE_PRECISION:
            fields["precision"] = self.precision
        return fields


def profile_labels(
    scored: pa.Table, tasks: Sequence[Task], markets: Sequence[str | None]
) -> dict[str, Profile]:
    """Count probabilities and labels by task and market.

    Args:
        scored: Labels of the first task in the rows' order, then of the second, and so on.
        tasks: The tasks in that order.
        markets: (N,) market of each row.
    """
    profiles = {}
    for number, task in enumerate(tasks):
        task_labels = scored.slice(number * len(markets), len(markets))
        probability_N = task_labels.column("probability").to_numpy()
        label_N = task_labels.column("label").to_numpy()
        profiles[task.name] = build_profile(probability_N, label_N, list(markets), len(task.labels))
    return profiles
