"""Score work units with a pool of Ray Data actors."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import last_line
from pipeline.registry.version_files import FetchedVersion
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.attempts import MAX_ATTEMPTS, sweep_attempts
from pipeline.scoring.score_cache import cached_files
from pipeline.scoring.unit_result import Outcome, read_outcome
from pipeline.scoring.work_units import Unit
from pipeline.storage.filesystem import remove_tree


def actor_settings(config: RunConfig, version: FetchedVersion, attempts_dir: Path) -> dict[str, Any]:
    """What an actor is told, as plain values."""
    return {
        "bundle_dir": str(version.bundle_dir),
        "bundle_sha256": version.bundle_sha256,
        "model_version": version.version,
        "reference": str(version.reference_path) if version.reference_path.is_file() else None,
        "canary_tolerance": config.scoring.canary_tolerance,
        "scores": str(config.scores_place),
        "known_files": cached_files(config.scores_place, version.bundle_sha256),
        "attempts_dir": str(attempts_dir),
        "num_actors": config.scoring.num_actors,
        "threads": config.scoring.threads_per_actor,
        "batch_tokens": config.scoring.batch_tokens,
        "hang_timeout_s": config.scoring.hang_timeout_s,
        "use_gpu": config.scoring.use_gpu,
    }


def scored_units(config: RunConfig, units: list[Unit], champion: FetchedVersion) -> Iterator[Outcome]:
    """Each unit's outcome as it comes. Ray must be running."""
    from ray.exceptions import RayError

    attempts_dir = config.run_dir / "scoring" / uuid.uuid4().hex[:12]
    sweep_attempts(attempts_dir.parent)
    attempts_dir.mkdir(parents=True)
    settings = actor_settings(config, champion, attempts_dir)
    left, lost, failed = {unit.partition: unit for unit in units}, "", False
    for _ in range(MAX_ATTEMPTS):
        try:
            for outcome in ray_outcomes(config, list(left.values()), settings):
                del left[outcome.partition]
                failed = failed or bool(outcome.error)
                yield outcome
        # one actor that is lost at the wrong moment ends a whole pipeline of Ray Data
        except RayError as error:
            lost = last_line(error)
        if not left:
            break
    for unit in left.values():
        yield Outcome(
            unit.partition,
            unit.path,
            error=f"{unit.path}: Ray lost its actors {MAX_ATTEMPTS} times ({lost})",
            retry=True,
        )
    if not failed and not left:  # or it tells where actors were stuck
        remove_tree(attempts_dir)


def ray_outcomes(config: RunConfig, units: list[Unit], settings: dict[str, Any]) -> Iterator[Outcome]:
    """One pipeline of Ray Data over units, on one actor pool."""
    import ray

    scoring = config.scoring
    items = [{"unit": json.dumps(asdict(unit))} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(units)).map_batches(
        UnitScorer,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(scoring.num_actors, len(units))),
        num_cpus=scoring.threads_per_actor,
        num_gpus=1 if scoring.use_gpu else 0,
        # our own notes end a unit's attempts; Ray's must not end before: it may count the death of an actor
        # and its absence after it
        max_restarts=MAX_ATTEMPTS * len(units),
        max_task_retries=4 * MAX_ATTEMPTS,
    )
    for row in dataset.iter_rows():
        yield read_outcome(json.loads(row["outcome"]))
