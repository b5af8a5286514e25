"""`relevance score`: label every pair once with the champion."""

import time
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

from jobs.cluster import no_node_for, ray_cluster
from jobs.console import Console
from jobs.score_progress import ScoringLive, live_path
from jobs.score_summary import drift_lines, spent_lines
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DataRefusedError, RelevanceError, RetryableError
from pipeline.registry.version_files import FetchedVersion, resolve_champion
from pipeline.scoring.label_store import newest_records, put_record, sweep_orphans
from pipeline.scoring.ray_pipeline import scored_units
from pipeline.scoring.run_record import ScoringRun, run_record
from pipeline.scoring.unit_result import Outcome
from pipeline.scoring.work_units import Unit, on_date, plan_units
from pipeline.storage.lease import Lease
from pipeline.storage.object_store import open_store

SHOWN_ERRORS = 5

SHOWN_UNITS = 20

SUMMARY = (
    "units_scored",
    "units_already_published",
    "rows_scored",
    "rows_reused",
    "rows_in",
    "labels",
    "errors",
)


def run_score(
    config: RunConfig, console: Console, logical_date: str | None = None, all_tasks: bool = False
) -> dict[str, Any]:
    """Score what is not scored yet, each row for its own task or for all tasks of the model. RelevanceError
    at the end if some units failed, RetryableError if the same command may mend it; the others are published.
    """
    run = new_run_name()
    scores, dated = open_store(config.scores_place), on_date(config, logical_date)
    champion = resolve_champion(config)
    if champion.registry_away:
        console.say(
            f"  {champion.registry_away}; going on with version {champion.version}, the champion by the "
            "promotion log, whose files are here"
        )
    with Lease(scores, console.say) as lease:
        lease.check()
        to_do, published = plan_units(dated, champion.bundle_sha256, all_tasks)
        console.say(
            f"  {len(to_do)} units to score with version {champion.version}, {len(published)} published "
            "before"
        )
        sweep_orphans(scores)
        started_s = time.time()  # the wait for a lease says nothing of the pace
        outcomes = score_units(dated, champion, to_do, console, lease) if to_do else []
        about = ScoringRun(run, champion, started_s, config.scoring.drift_refuse)
        record = run_record(scores, about, [*published, *to_do], outcomes)
        kept = put_record(scores, {**record, "logical_date": logical_date})
    for line in [
        *spent_lines(record, min(config.scoring.num_actors, len(to_do))),
        *drift_lines(record, config.scoring.drift_warn),
    ]:
        console.say(f"  {line}")
    check_outcomes(outcomes)
    if not record["accepted"]:
        limit = f"{record['largest_drift']:.2f}, scoring.drift_refuse is {config.scoring.drift_refuse}"
        raise DataRefusedError(
            f"scores moved by a stability index of {limit}; the labels are published, but this is not the "
            "run that read_run reads"
        )
    return {"scores": scores.place, "run": kept, **{name: record[name] for name in SUMMARY}}


def new_run_name() -> str:
    """In the order of time, also of runs within one second."""
    now_ns = time.time_ns()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now_ns // 10**9))}-{now_ns % 10**9:09d}"


def run_backfill(
    config: RunConfig, console: Console, first: str, last: str, all_tasks: bool = False
) -> dict[str, Any]:
    """Score one logical date after the other, each as a run of its own. A date that was scored costs a look
    at its files. The first one that fails ends the command; the dates before it are done.
    """
    runs = {}
    for day in dates_between(first, last):
        console.say(f"  {day}")
        runs[day] = run_score(config, console, day, all_tasks)
    totals = {name: sum(run[name] for run in runs.values()) for name in SUMMARY}
    return {
        "scores": str(config.scores_place),
        "dates": {day: run["run"] for day, run in runs.items()},
        **totals,
    }


def run_plan(
    config: RunConfig, console: Console, days: Sequence[str | None], all_tasks: bool = False
) -> dict[str, Any]:
    """What would be scored, with the time it would take at the pace of the last run that scored something so;
    no label is written.
    """
    champion = resolve_champion(config)
    to_do: list[Unit] = []
    num_published = 0
    for day in days:
        units, published = plan_units(on_date(config, day), champion.bundle_sha256, all_tasks)
        to_do += units
        num_published += len(published)
    for unit in to_do[:SHOWN_UNITS]:
        part = f", from row {unit.part[0]:,}" if unit.part else ""
        console.result(f"  {unit.task:20} {unit.rows:>10,} rows  {unit.path}{part}")
    if len(to_do) > SHOWN_UNITS:
        console.result(f"  ... and {len(to_do) - SHOWN_UNITS:,} more units")
    rows, rate = sum(unit.rows for unit in to_do), rows_per_s(config, all_tasks)
    summary = {
        "version": champion.version,
        "units_to_score": len(to_do),
        "rows_to_score": rows,
        "units_already_published": num_published,
    }
    return {**summary, "estimated_s": round(rows / rate) if rate else None}


def rows_per_s(config: RunConfig, all_tasks: bool) -> float | None:
    """The pace of the last run that judged something, for all tasks or for one."""
    for record in newest_records(config.scores_place):
        judged = record["rows_scored"] - record.get("rows_reused", 0)
        if judged and record.get("all_tasks", False) == all_tasks:
            return float(judged / record["seconds"])
    return None


def dates_between(first: str, last: str) -> Iterator[str]:
    """Every day from the first to the last, as 2026-01-31. ConfigError: one is no date, or they are the wrong
    way round.
    """
    start, end = read_date(first), read_date(last)
    if end < start:
        raise ConfigError(
            f"--until {last} lies before --logical-date {first}; name the later day with --until"
        )
    for number in range((end - start).days + 1):
        yield (start + timedelta(days=number)).isoformat()


def read_date(text: str) -> date:
    """ConfigError: it is no date, or written another way, which would be another folder."""
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.isoformat() != text:
        raise ConfigError(f"{text!r} is no date; write it as 2026-01-31")
    return found


def score_units(
    config: RunConfig, champion: FetchedVersion, to_do: list[Unit], console: Console, lease: Lease
) -> list[Outcome]:
    """Score units on Ray."""
    from filelock import FileLock

    path = live_path(config.run_dir)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # of a scoring before
    scoring, rows = config.scoring, sum(unit.rows for unit in to_do)
    num_actors = min(scoring.num_actors, len(to_do))
    cluster = ray_cluster(num_actors * scoring.threads_per_actor, num_actors * scoring.use_gpu)
    # the lock is what `relevance status` sees that a scoring is under way by
    with FileLock(path.with_name("active")), cluster, console.progress("score", rows, "pairs") as progress:
        if no_node_for(scoring.threads_per_actor, int(scoring.use_gpu)):
            each = f"{scoring.threads_per_actor} CPUs" + " and a GPU" * scoring.use_gpu
            console.say(
                f"  no node of the cluster has {each} now, which an actor takes "
                "(scoring.threads_per_actor, use_gpu); waiting for one"
            )
        live = ScoringLive(path, config.name, to_do, progress)
        for outcome in scored_units(config, to_do, champion):
            live.unit_done(outcome)
            lease.check()
        return live.done


def check_outcomes(outcomes: list[Outcome]) -> None:
    """RelevanceError: some units failed; RetryableError: some of those may succeed when they are tried
    again.
    """
    # those that will fail again are told first
    failed = sorted((one for one in outcomes if one.error), key=lambda one: one.retry)
    if failed:
        kind = RetryableError if failed[-1].retry else RelevanceError
        shown = "; ".join(one.error for one in failed[:SHOWN_ERRORS])
        raise kind(
            f"{len(failed)} of {len(outcomes)} units were not scored, the others are published: {shown}"
        )
