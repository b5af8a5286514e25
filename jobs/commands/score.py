"""`relevance score`: label every pair once with the champion."""

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

from jobs.cluster import ray_cluster
from jobs.command_run import CommandRun
from jobs.row_prediction import announce_first_actor, warn_without_node
from jobs.score_progress import ScoringProgress
from jobs.score_summary import drift_lines, usage_lines
from models.files import remove_tree
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DataRefusedError, RetryableError
from pipeline.inference.attempts import attempt_evidence, create_attempts_dir
from pipeline.inference.model_actor import UnitFailure, failure_error
from pipeline.registry.version_files import VersionFiles, resolve_champion
from pipeline.runtime.ray_metrics import MetricTags
from pipeline.scoring.actor import score_on_ray
from pipeline.scoring.actor_settings import ActorSettings, build_actor_settings
from pipeline.scoring.duplicates import ScoringRounds
from pipeline.scoring.label_store import sweep_orphans
from pipeline.scoring.metrics import ScoringGauges
from pipeline.scoring.scoring_record import ScoringRun, build_scoring_record, newest_records, put_record
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import MissingDayError, Plan, WorkUnit, check_day, insert_date, plan_units
from pipeline.storage.lease import Lease
from pipeline.storage.object_store import open_store

logger = logging.getLogger(__name__)

SHOWN_UNITS = 20

SUMMARY_KEYS = (
    "units_scored",
    "units_already_published",
    "rows_scored",
    "rows_reused",
    "rows_in",
    "labels",
    "errors",
)


def run_score(
    config: RunConfig, run: CommandRun, logical_date: str | None = None, all_tasks: bool = False
) -> dict[str, Any]:
    """Score the units that are not published yet, each row for its own task or for all tasks of the model.

    Raises:
        RelevanceError: some units failed; the others are published.
        RetryableError: some units failed, and the same command may succeed later.
        MissingDayError: there are no rows of the date yet.
        DataRefusedError: the scores drifted more than scoring.drift_refuse.
    """
    scores = open_store(config.scores_location)
    rows_location = insert_date(config.to_score_location, logical_date)
    if logical_date is not None:
        check_day(config.to_score_location, logical_date)
    champion = resolve_champion(config)
    with Lease(scores, run.id) as lease:
        lease.check()
        plan = plan_units(
            rows_location,
            config.scores_location,
            config.tasks,
            champion.bundle_sha256,
            all_tasks,
            config.scoring.when_unproven,
        )
        to_do, published = plan.to_do, plan.published
        logger.info(
            f"  {len(to_do)} units to score with version {champion.version}, {len(published)} published "
            "already"
        )
        plan.inputs.save()
        sweep_orphans(scores)
        # waiting for the lease does not count as scoring time
        started_s, started_monotonic_s = time.time(), time.monotonic()
        results = score_units(config, champion, plan, run, lease) if to_do else []
        # a wrong digest or number of rows of a file would fail again
        plan.inputs.forget([result.path for result in results if result.error])
        name = run.id if logical_date is None else f"{run.id}-{logical_date}"
        seconds = time.monotonic() - started_monotonic_s
        refuse = config.scoring.drift_refuse
        scoring_run = ScoringRun(name, champion, started_s, seconds, refuse, logical_date, plan.index_name)
        record = build_scoring_record(scores, scoring_run, [*published, *to_do], results)
        record_location = put_record(scores, record)
    num_actors = min(config.scoring.num_actors, len(to_do))
    for line in [*usage_lines(record, num_actors), *drift_lines(record, config.scoring.drift_warn)]:
        logger.info(f"  {line}")
    check_results(results)
    if not record.accepted:
        raise DataRefusedError(
            f"scores drifted: stability index {record.drift.largest_psi:.2f}, scoring.drift_refuse is "
            f"{config.scoring.drift_refuse}; the labels are published, but read_run does not read this run"
        )
    recorded = record.to_json()
    summary = {name: recorded[name] for name in SUMMARY_KEYS}
    return {"scores": scores.location, "run": record_location, **summary, "next": run.suggest("report")}


def run_backfill(
    config: RunConfig, run: CommandRun, first: str, last: str, all_tasks: bool = False
) -> dict[str, Any]:
    """Score one logical date after the other, each as a run of its own.

    For a date that is scored already, its files are listed and nothing is scored. Dates without rows are
    passed over. The first other failure ends the command; the labels of earlier dates are published.

    Raises:
        RetryableError: there are no rows of some dates yet; the other dates are scored.
    """
    runs, missing = {}, []
    for day in dates_between(first, last):
        run.begin_stage(day)
        try:
            runs[day] = run_score(config, run, day, all_tasks)
        except MissingDayError as error:
            missing.append(day)
            logger.warning(f"  {error}")
    if missing:
        raise RetryableError(
            f"rows of {len(missing)} of {len(missing) + len(runs)} days are missing: {', '.join(missing)}; "
            "the other days are scored, run the same command again when these are there"
        )
    totals = {name: sum(summary[name] for summary in runs.values()) for name in SUMMARY_KEYS}
    return {
        "scores": str(config.scores_location),
        "dates": {day: summary["run"] for day, summary in runs.items()},
        **totals,
        "next": run.suggest("report"),
    }


def run_plan(
    config: RunConfig, run: CommandRun, days: Sequence[str | None], all_tasks: bool = False
) -> dict[str, Any]:
    """List the units that would be scored, with an estimate of the time; write no label.

    The estimate uses the rate of the last run that scored in the same way.
    """
    champion = resolve_champion(config)
    to_do: list[WorkUnit] = []
    num_published, missing = 0, []
    for day in days:
        try:
            if day is not None:
                check_day(config.to_score_location, day)
        except MissingDayError as error:
            missing.append(day)
            run.result(f"  {error}")
            continue
        rows_location = insert_date(config.to_score_location, day)
        plan = plan_units(
            rows_location,
            config.scores_location,
            config.tasks,
            champion.bundle_sha256,
            all_tasks,
            config.scoring.when_unproven,
        )
        to_do += plan.to_do
        num_published += len(plan.published)
    for unit in to_do[:SHOWN_UNITS]:
        part = f", from row {unit.part[0]:,}" if unit.part else ""
        run.result(f"  {unit.task:20} {unit.rows:>10,} rows  {unit.path}{part}")
    if len(to_do) > SHOWN_UNITS:
        run.result(f"  ... and {len(to_do) - SHOWN_UNITS:,} more units")
    rows, rate = sum(unit.rows for unit in to_do), rows_per_s(config, all_tasks)
    return {
        "version": champion.version,
        "units_to_score": len(to_do),
        "rows_to_score": rows,
        "units_already_published": num_published,
        "days_missing": missing,
        "estimated_s": round(rows / rate) if rate else None,
        "next": run.suggest("score", *_date_options(days), *(["--all-tasks"] if all_tasks else [])),
    }


def _date_options(days: Sequence[str | None]) -> list[str]:
    """Return the options that ask for consecutive days."""
    named = [day for day in days if day is not None]
    first = ["--logical-date", named[0]] if named else []
    return [*first, "--until", named[-1]] if len(named) > 1 else first


def rows_per_s(config: RunConfig, all_tasks: bool) -> float | None:
    """Return the rate of the last run that scored rows, for all tasks or for one; None if there is none."""
    for record in newest_records(config.scores_location):
        num_scored = record.rows_scored - record.rows_reused
        if num_scored and record.all_tasks == all_tasks:
            return num_scored / record.seconds
    return None


def requested_days(logical_date: str | None, until: str | None) -> list[str | None]:
    """Return the days that --logical-date and --until ask for; [None] without a date.

    Raises:
        ConfigError: A date is not valid, or the last lies before the first.
    """
    if logical_date is None:
        return [None]
    return list(dates_between(logical_date, logical_date if until is None else until))


def dates_between(first: str, last: str) -> Iterator[str]:
    """Yield every day from the first to the last as 2026-01-31; ConfigError if they are not valid."""
    start, end = read_date(first), read_date(last)
    if end < start:
        raise ConfigError(
            f"--until {last} lies before --logical-date {first}; name the later day with --until"
        )
    for number in range((end - start).days + 1):
        yield (start + timedelta(days=number)).isoformat()


def read_date(text: str) -> date:
    """Parse a date; ConfigError for any other spelling, which would name another folder."""
    try:
        parsed = date.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.isoformat() != text:
        raise ConfigError(f"date not valid: {text!r}; write it as 2026-01-31")
    return parsed


def score_units(
    config: RunConfig,
    champion: VersionFiles,
    plan: Plan,
    run: CommandRun,
    lease: Lease,
) -> list[UnitResult]:
    """Score units with Ray actors; every result is in the run record as soon as it is known.

    Args:
        plan: Units to score, and published units of the same inputs, whose rows keep their ids.
    """
    attempts_dir = create_attempts_dir(config.run_dir, "scoring", run.id)
    rounds = ScoringRounds(plan, config.scores_location, attempts_dir)
    scoring, to_do = config.scoring, plan.to_do
    num_actors = min(scoring.num_actors, len(to_do))
    cluster = ray_cluster(num_actors * scoring.threads_per_actor, num_actors * scoring.use_gpu)
    with cluster, run.track("score", sum(unit.rows for unit in to_do), "pairs") as bar:
        warn_without_node(scoring)
        progress = ScoringProgress(to_do, ScoringGauges(MetricTags(config.name, run.id)), run, bar)
        settings = build_actor_settings(
            scoring, config.scores_location, champion, attempts_dir, run.log, plan.index_name
        )
        try:
            with progress.follow(attempts_dir), announce_first_actor(attempts_dir, scoring):
                for result in score_rounds(rounds, settings):
                    progress.record_unit(result)
                    lease.check()
            if not any(result.error for result in progress.results):
                remove_tree(attempts_dir)
        finally:
            run.add_evidence(*attempt_evidence(attempts_dir))
        return progress.results


def score_rounds(rounds: ScoringRounds, settings: ActorSettings) -> Iterator[UnitResult]:
    """Yield the result of each unit; units whose row_ids other units keep come after those."""
    results: list[UnitResult] = []
    while units := rounds.next_units(results):
        if results:
            logger.info(f"  {len(units):,} units had to wait for others with row_ids of theirs")
        if num_duplicates := sum(unit.duplicates for unit in units):
            logger.warning(
                f"  {num_duplicates:,} rows have the row_id of another row; they are published as errors "
                "that name its place, see read_errors"
            )
        for result in score_on_ray(units, settings):
            results.append(result)
            yield result
    yield from rounds.describe_waiting()


def check_results(results: list[UnitResult]) -> None:
    """Raise the error of units that failed; see `failure_error`."""
    failures = [
        UnitFailure(result.error, result.retry, result.is_config_error, result.is_damaged)
        for result in results
        if result.error
    ]
    if failures:
        problem = f"{len(failures)} of {len(results)} units were not scored, the others are published"
        raise failure_error(failures, problem)
