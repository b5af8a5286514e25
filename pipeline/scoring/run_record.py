"""Build the record of a scoring run: its partitions, counts and drift, and whether it is accepted."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DamagedInputError
from pipeline.evaluation.score_reference import Profile, add_profile, read_reference
from pipeline.registry.version_files import FetchedVersion
from pipeline.scoring.drift import drift_rows
from pipeline.scoring.label_store import Root, judged_tasks, last_record, read_manifest
from pipeline.scoring.unit_manifest import profiles_of
from pipeline.scoring.unit_result import Outcome
from pipeline.scoring.work_units import Unit


@dataclass(frozen=True)
class ScoringRun:
    """One run of the scoring job."""

    name: str
    champion: FetchedVersion
    started_s: float
    drift_refuse: float | None  # stability index from which on the run is not accepted


def run_record(
    root: Root, run: ScoringRun, units: Sequence[Unit], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """The run's record, json. `units`: all that it stands for; `outcomes`: of those that it scored itself.

    DamagedInputError: a published partition's labels and errors are not as many as its rows in.
    """
    failed = {one.partition: one for one in outcomes if one.error}
    manifests = [read_manifest(root, unit.partition) for unit in units if unit.partition not in failed]
    check_rows_accounted_for(manifests)
    spent = {
        name: sum(getattr(one, name) for one in outcomes)
        for name in ("tokens_in", "tokens_computed", "model_s", "at_peak_s")
    }
    profiles: dict[str, Profile] = {}
    for manifest in manifests:
        for task, profile in profiles_of(manifest).items():
            add_profile(profiles.setdefault(task, {}), profile)
    all_tasks = any(unit.all_tasks for unit in units)
    drift = find_drift(root, run.champion, profiles, all_tasks)
    largest = max((one["psi"] for lines in drift.values() for one in lines), default=0.0)
    totals = [counts(manifest) for manifest in manifests]
    return {
        "run": run.name,
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started_s)),
        "seconds": round(time.time() - run.started_s, 3),
        "model_version": run.champion.version,
        "bundle_sha256": run.champion.bundle_sha256,
        "all_tasks": all_tasks,
        "units_scored": len(outcomes) - len(failed),
        "units_already_published": len(units) - len(outcomes),
        "units_failed": [
            {"partition": one.partition, "path": one.path, "error": one.error} for one in failed.values()
        ],
        "rows_scored": sum(one.rows for one in outcomes),
        "rows_reused": sum(one.reused for one in outcomes),
        **{name: sum(one[name] for one in totals) for name in ("rows_in", "labels", "errors")},
        "tasks": counts_by_task(manifests),
        "spent": spent,
        "matmul_efficiency": spent["at_peak_s"] / spent["model_s"] if spent["model_s"] else None,
        "profiles": profiles,
        "drift": drift,
        "largest_drift": largest,
        "accepted": not failed and (run.drift_refuse is None or largest < run.drift_refuse),
        "partitions": sorted(manifest["partition"] for manifest in manifests),
    }


def check_rows_accounted_for(manifests: Sequence[Mapping[str, Any]]) -> None:
    """DamagedInputError: a partition's labels and errors are not as many as its rows in."""
    for manifest in manifests:
        labelled_rows = manifest["input"]["rows"] - manifest.get("error_rows", 0)
        if manifest["rows"] != len(judged_tasks(manifest)) * labelled_rows:
            remedy = f"delete manifests/{manifest['partition']}.json and score again"
            raise DamagedInputError(
                f"partition {manifest['partition']} has other rows than labels and errors together; {remedy}"
            )


def find_drift(
    root: Root, champion: FetchedVersion, profiles: Mapping[str, Profile], all_tasks: bool
) -> dict[str, list[dict[str, Any]]]:
    """How scores are spread beside those of the last accepted run, and beside the version's test rows."""
    has_reference = champion.reference_path.is_file()
    reference = read_reference(champion.reference_path, champion.bundle_sha256) if has_reference else None
    before = last_record(root, all_tasks)  # of other rows by task, scores are spread otherwise
    return {
        "against_last_run": drift_rows(profiles, before["profiles"]) if before else [],
        "against_test_rows": drift_rows(profiles, reference["profiles"]) if reference else [],
    }


def counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Rows in, labels and errors of a partition."""
    return {
        "rows_in": manifest["input"]["rows"],
        "labels": manifest["rows"],
        "errors": manifest.get("error_rows", 0),
    }


def counts_by_task(manifests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The same of each task that rows were judged for, over partitions: a row that was judged for all tasks
    is a row in, and an error, of each.
    """
    found: dict[str, dict[str, int]] = {}
    for manifest in manifests:
        tasks = judged_tasks(manifest)
        for task in tasks:
            of_task = found.setdefault(task, {"rows_in": 0, "labels": 0, "errors": 0})
            for name, value in counts(manifest).items():
                of_task[name] += value // len(tasks) if name == "labels" else value
    return found
