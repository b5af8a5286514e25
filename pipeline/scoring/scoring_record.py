"""Records of scoring runs: the units of a run, its counts and drift, and whether it is accepted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, DamagedInputError
from pipeline.evaluation.score_reference import Profile, add_profile, read_reference
from pipeline.publishing.manifest_index import ManifestIndex
from pipeline.publishing.unit_store import Root, list_json_keys, read_stored
from pipeline.registry.version_files import VersionFiles
from pipeline.scoring.drift import DriftRow, compare_profiles
from pipeline.scoring.published_labels import LabelSelection, read_table
from pipeline.scoring.unit_manifest import UnitManifest
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit
from pipeline.storage.filesystem import canonical_json
from pipeline.storage.object_store import Store, open_store

ALL_MANIFESTS = "all"  # name of an index


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows in, of labels, and of rows without a label."""

    rows_in: int = 0
    labels: int = 0
    errors: int = 0

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(self.rows_in + other.rows_in, self.labels + other.labels, self.errors + other.errors)


@dataclass(frozen=True)
class RunUsage:
    """Tokens and model time of a run, summed over its actors."""

    tokens_in: int = 0
    tokens_computed: int = 0
    model_s: float = 0.0
    at_peak_s: float = 0.0  # time for the computed tokens at the measured peak of matrix products

    @property
    def matmul_efficiency(self) -> float | None:
        """Share of the measured peak that was reached; None if nothing was computed."""
        return self.at_peak_s / self.model_s if self.model_s else None


@dataclass(frozen=True)
class Drift:
    """Score drift of a run against two references."""

    against_last_run: tuple[DriftRow, ...] = ()
    against_test_rows: tuple[DriftRow, ...] = ()

    @property
    def largest_psi(self) -> float:
        """Largest stability index; 0 if nothing was compared."""
        return max((row.psi for row in (*self.against_last_run, *self.against_test_rows)), default=0.0)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Drift":
        """Parse the recorded form."""
        return cls(**{name: tuple(DriftRow.from_json(row) for row in rows) for name, rows in fields.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "against_last_run": [row.to_json() for row in self.against_last_run],
            "against_test_rows": [row.to_json() for row in self.against_test_rows],
        }


@dataclass(frozen=True)
class FailedUnit:
    """Unit that a run could not score."""

    unit_id: str
    path: str
    error: str

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "FailedUnit":
        """Parse the recorded form."""
        return cls(fields["partition"], fields["path"], fields["error"])

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {"partition": self.unit_id, "path": self.path, "error": self.error}


@dataclass(frozen=True)
class ScoringRecord:
    """Record of one scoring run, under <root>/runs/<run>.json."""

    run: str
    unit_ids: tuple[str, ...]  # published units of the run's inputs, sorted
    accepted: bool  # no unit failed, and the drift is within its limit
    bundle_sha256: str = ""
    model_version: str = ""
    started_at: str = ""
    seconds: float = 0.0
    logical_date: str | None = None
    all_tasks: bool = False
    units_scored: int = 0
    units_already_published: int = 0
    units_failed: tuple[FailedUnit, ...] = ()
    rows_scored: int = 0
    rows_reused: int = 0
    counts: RowCounts = RowCounts()
    tasks: Mapping[str, RowCounts] = field(default_factory=dict)
    usage: RunUsage = RunUsage()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    drift: Drift = Drift()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ScoringRecord":
        """Parse a recorded run; fields that older records lack have their defaults."""
        plain = (
            "run", "accepted", "bundle_sha256", "model_version", "started_at", "seconds", "logical_date",
            "all_tasks", "units_scored", "units_already_published", "rows_scored", "rows_reused",
        )  # fmt: skip
        counts = {name: fields.get(name, 0) for name in ("rows_in", "labels", "errors")}
        return cls(
            **{name: fields[name] for name in plain if name in fields},
            unit_ids=tuple(fields["partitions"]),
            units_failed=tuple(FailedUnit.from_json(unit) for unit in fields.get("units_failed", ())),
            counts=RowCounts(**counts),
            tasks={task: RowCounts(**task_counts) for task, task_counts in fields.get("tasks", {}).items()},
            usage=RunUsage(**fields.get("spent", {})),
            profiles=dict(fields.get("profiles", {})),
            drift=Drift.from_json(fields.get("drift", {})),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        return {
            "run": self.run,
            "started_at": self.started_at,
            "seconds": self.seconds,
            "logical_date": self.logical_date,
            "model_version": self.model_version,
            "bundle_sha256": self.bundle_sha256,
            "all_tasks": self.all_tasks,
            "units_scored": self.units_scored,
            "units_already_published": self.units_already_published,
            "units_failed": [unit.to_json() for unit in self.units_failed],
            "rows_scored": self.rows_scored,
            "rows_reused": self.rows_reused,
            **asdict(self.counts),
            "tasks": {task: asdict(counts) for task, counts in self.tasks.items()},
            "spent": asdict(self.usage),
            "matmul_efficiency": self.usage.matmul_efficiency,
            "profiles": dict(self.profiles),
            "drift": self.drift.to_json(),
            "largest_drift": self.drift.largest_psi,
            "accepted": self.accepted,
            "partitions": list(self.unit_ids),
        }


@dataclass(frozen=True)
class ScoringRun:
    """One run of the scoring command."""

    name: str
    champion: VersionFiles
    started_s: float
    seconds: float
    drift_refuse: float | None  # stability index from which on the run is not accepted
    logical_date: str | None = None
    index: str = ALL_MANIFESTS  # name of the index of the manifests of the run's inputs


@dataclass
class _Totals:
    """Sums over the manifests of a run."""

    counts: RowCounts = RowCounts()
    tasks: dict[str, RowCounts] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)

    def add(self, manifest: UnitManifest) -> None:
        """Add a unit; a row labeled for all tasks counts as a row in, or an error, of each."""
        _check_counts(manifest)
        rows, labels, errors = manifest.input.num_rows, manifest.num_labels, manifest.num_errors
        self.counts += RowCounts(rows, labels, errors)
        task_counts = RowCounts(rows, labels // len(manifest.tasks), errors)
        for task in manifest.tasks:
            self.tasks[task] = self.tasks.get(task, RowCounts()) + task_counts
        for task, profile in manifest.profiles.items():
            add_profile(self.profiles.setdefault(task, {}), profile)


def build_scoring_record(
    root: Root, run: ScoringRun, units: Sequence[WorkUnit], results: Sequence[UnitResult]
) -> ScoringRecord:
    """Build the record of a run.

    Args:
        root: The location of all scores.
        run: The run.
        units: All units of the run's inputs.
        results: Results of those units that the run scored itself.

    Raises:
        DamagedInputError: Labels and errors of a unit do not add up to its rows.
    """
    failed = {
        result.unit_id: FailedUnit(result.unit_id, result.path, result.error)
        for result in results
        if result.error
    }
    totals = _Totals()
    unit_ids = [unit.unit_id for unit in units if unit.unit_id not in failed]
    for manifest in ManifestIndex(root, run.index).read(UnitManifest.from_json, unit_ids):
        totals.add(manifest)
    all_tasks = any(unit.all_tasks for unit in units)
    profiles = dict(sorted(totals.profiles.items()))
    drift = _measure_drift(root, run.champion, profiles, all_tasks)
    return ScoringRecord(
        run=run.name,
        unit_ids=tuple(sorted(unit_ids)),
        accepted=not failed and (run.drift_refuse is None or drift.largest_psi < run.drift_refuse),
        bundle_sha256=run.champion.bundle_sha256,
        model_version=run.champion.version,
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started_s)),
        seconds=round(run.seconds, 3),
        logical_date=run.logical_date,
        all_tasks=all_tasks,
        units_scored=len(results) - len(failed),
        units_already_published=len(units) - len(results),
        units_failed=tuple(failed.values()),
        rows_scored=sum(result.rows for result in results),
        rows_reused=sum(result.reused for result in results),
        counts=totals.counts,
        tasks=totals.tasks,
        usage=RunUsage(
            tokens_in=sum(result.tokens_in for result in results),
            tokens_computed=sum(result.tokens_computed for result in results),
            model_s=sum(result.model_s for result in results),
            at_peak_s=sum(result.at_peak_s for result in results),
        ),
        profiles=profiles,
        drift=drift,
    )


def put_record(root: Root, record: ScoringRecord) -> str:
    """Store a scoring record beside the labels, and return its location."""
    store, key = open_store(root), f"runs/{record.run}.json"
    store.put_if_absent(key, canonical_json(record.to_json()).encode())
    return f"{store.location}/{key}"


def newest_records(root: Root) -> Iterator[ScoringRecord]:
    """Yield scoring records, the last run first; each is read when it is requested.

    Raises:
        DamagedInputError: A file among them is not a scoring record.
    """
    store = open_store(root)
    for key in reversed(list_json_keys(store, "runs")):
        yield _read_record(store, key)


def accepted_records(root: Root) -> Iterator[ScoringRecord]:
    """Yield the records of accepted runs, the last run first."""
    return (record for record in newest_records(root) if record.accepted)


def last_accepted_record(root: Root, all_tasks: bool | None = None) -> ScoringRecord | None:
    """Return the record of the last accepted run.

    Args:
        root: The location of all scores.
        all_tasks: Restricts the search to runs that labeled rows for all tasks (True) or not (False).
    """
    for record in accepted_records(root):
        if all_tasks is None or record.all_tasks == all_tasks:
            return record
    return None


def read_run(root: Root, run: str | None = None) -> pa.Table:
    """Return the labels (SCORE_SCHEMA) of a run's inputs, those published before the run included.

    Args:
        root: The location of all scores.
        run: Name of the run; None: the last accepted one.

    Raises:
        ConfigError: There is no such run.
        DamagedInputError: A manifest or a file it names is missing or altered.
    """
    if run is None:
        last = last_accepted_record(root)
        if last is None:
            raise ConfigError(
                f"{open_store(root).location} has no accepted run yet; run `relevance score` first"
            )
        run = last.run
    elif open_store(root).exists(key := f"runs/{run}.json"):
        _read_record(open_store(root), key)
    return read_table(root, LabelSelection(run=run))


def _read_record(store: Store, key: str) -> ScoringRecord:
    return read_stored(store, key, ScoringRecord.from_json, "scoring record")


def _check_counts(manifest: UnitManifest) -> None:
    """Raise DamagedInputError unless labels and errors account for all rows of a unit."""
    rows, labels, errors = manifest.input.num_rows, manifest.num_labels, manifest.num_errors
    if labels != len(manifest.tasks) * (rows - errors):
        raise DamagedInputError(
            f"row counts disagree in the manifest of unit {manifest.unit_id}: {rows} rows in, "
            f"{labels} labels for {len(manifest.tasks)} tasks, {errors} errors; "
            f"delete manifests/{manifest.unit_id}.json and run the command that wrote it again"
        )


def _measure_drift(
    root: Root, champion: VersionFiles, profiles: Mapping[str, Profile], all_tasks: bool
) -> Drift:
    """Compare score profiles with those of the last accepted run and of the version's test rows."""
    reference = read_reference(champion.bundle_dir, champion.bundle_sha256)
    last = last_accepted_record(root, all_tasks)  # runs of the other kind label other rows by task
    return Drift(
        against_last_run=tuple(compare_profiles(profiles, last.profiles)) if last else (),
        against_test_rows=tuple(compare_profiles(profiles, reference.profiles)),
    )
