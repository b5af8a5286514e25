"""`relevance score`: label every pair once with the champion."""

import time
import uuid
from typing import Any

from jobs.cluster import ray_cluster
from pipeline.commit import put_if_absent, sweep_orphans
from pipeline.config import RunConfig
from pipeline.errors import DataRefusedError, RelevanceError, RetryableError
from pipeline.files import canonical_json
from pipeline.logs import Console
from pipeline.registry import FetchedVersion, resolve_champion
from pipeline.score import Outcome, scored_units
from pipeline.score_run import drift_lines, run_record
from pipeline.score_units import Unit, plan_units

SHOWN_ERRORS = 5


def run_score(config: RunConfig, console: Console) -> dict[str, Any]:
    """Score what is not scored yet. RelevanceError at the end if some units failed, RetryableError if the same command may mend it; the others are
    published."""
    started_s, run = time.time(), f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    scores_dir = config.run_dir / "scores"
    champion = resolve_champion(config)
    to_do, published = plan_units(config, champion.bundle_sha256)
    console.say(f"  {len(to_do)} units to score with version {champion.version}, {len(published)} published before")
    sweep_orphans(scores_dir)
    outcomes = score_units(config, champion, to_do, console) if to_do else []
    record = run_record(scores_dir, run, champion, [*published, *to_do], outcomes, started_s, config.scoring.drift_refuse)
    path = scores_dir / "runs" / f"{run}.json"
    put_if_absent(path, canonical_json(record).encode())
    for line in drift_lines(record, config.scoring.drift_warn):
        console.say(f"  {line}")
    check_outcomes(outcomes)
    if not record["accepted"]:
        limit = f"{record['largest_drift']:.2f}, scoring.drift_refuse is {config.scoring.drift_refuse}"
        raise DataRefusedError(f"scores moved by a stability index of {limit}; the labels are published, but this is not the run that read_run reads")
    return {"scores": str(scores_dir), "run": str(path), **{name: record[name] for name in SUMMARY}}


SUMMARY = ("units_scored", "units_already_published", "rows_scored", "rows_in", "labels", "errors")


def score_units(config: RunConfig, champion: FetchedVersion, to_do: list[Unit], console: Console) -> list[Outcome]:
    """Score units on Ray."""
    outcomes = []
    num_cpus = config.scoring.num_actors * config.scoring.threads_per_actor
    with ray_cluster(num_cpus), console.progress("score", len(to_do), "units") as progress:
        for outcome in scored_units(config, to_do, champion):
            outcomes.append(outcome)
            progress.update(len(outcomes), f"{sum(one.labels for one in outcomes):,} pairs")
    return outcomes


def check_outcomes(outcomes: list[Outcome]) -> None:
    """RelevanceError: some units failed; RetryableError: all those may succeed when they are tried again."""
    failed = [one for one in outcomes if one.error]
    if failed:
        kind = RetryableError if all(one.retry for one in failed) else RelevanceError
        shown = "; ".join(one.error for one in failed[:SHOWN_ERRORS])
        raise kind(f"{len(failed)} of {len(outcomes)} units were not scored, the others are published: {shown}")
