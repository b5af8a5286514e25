"""Scoring of work units by a pool of Ray Data actors."""

import json
from collections.abc import Iterator, Sequence

from pipeline.errors import summarize_error
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.actor_settings import ActorSettings
from pipeline.scoring.attempts import MAX_ATTEMPTS
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit


def score_on_ray(units: Sequence[WorkUnit], settings: ActorSettings) -> Iterator[UnitResult]:
    """Yield each unit's result as it comes. Ray must be running."""
    from ray.exceptions import RayError

    remaining = {unit.unit_id: unit for unit in units}
    last_error = ""
    for _ in range(MAX_ATTEMPTS):
        try:
            for result in _run_pipeline(list(remaining.values()), settings):
                del remaining[result.unit_id]
                yield result
        # An actor lost at the wrong moment ends a whole pipeline of Ray Data.
        except RayError as error:
            last_error = summarize_error(error)
        if not remaining:
            break
    for unit in remaining.values():
        message = (
            f"{unit.path}: Ray lost its actors {MAX_ATTEMPTS} times ({last_error}); run the command again"
        )
        yield UnitResult(unit.unit_id, unit.path, error=message, retry=True)


def _run_pipeline(units: Sequence[WorkUnit], settings: ActorSettings) -> Iterator[UnitResult]:
    """Yield the results of one Ray Data pipeline with one actor pool."""
    import ray

    scoring = settings.scoring
    items = [{"unit": json.dumps(unit.to_json())} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(units)).map_batches(
        UnitScorer,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(scoring.num_actors, len(units))),
        num_cpus=scoring.threads_per_actor,
        num_gpus=1 if scoring.use_gpu else 0,
        # UnitAttempts ends a unit's attempts. Ray may count an actor's death twice: its limits are higher.
        max_restarts=MAX_ATTEMPTS * len(units),
        max_task_retries=4 * MAX_ATTEMPTS,
    )
    for row in dataset.iter_rows():
        yield UnitResult.from_json(json.loads(row["result"]))
