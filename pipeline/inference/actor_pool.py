"""Units done by a pool of Ray Data actors that each hold a model."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.scoring import ScoringConfig
from pipeline.errors import summarize_error
from pipeline.inference.attempts import MAX_ATTEMPTS

Json = dict[str, Any]


@dataclass(frozen=True)
class PoolUnit:
    """Input of one call of an actor: JSON values, and bytes such as rows."""

    fields: Json
    content: bytes = b""


class PoolActor(Protocol):
    """Actor class of a pool: built from its settings, then called with one unit at a time.

    It returns each unit's result as JSON values, with the unit's id under "unit_id", and raises nothing.
    """

    def __init__(self, settings: Any) -> None: ...

    def do_unit(self, unit: PoolUnit) -> Json:
        """Do one unit."""


@dataclass(frozen=True)
class Pool:
    """Actors of one command."""

    actor: type[PoolActor]
    settings: Any  # of each actor
    config: ScoringConfig  # threads, device and number of the actors
    attempts_dir: Path  # shared by the actors


def do_units(
    pool: Pool, units: Mapping[str, PoolUnit], give_up: Callable[[str, str], Json]
) -> Iterator[Json]:
    """Yield each unit's result as it comes. Ray must be running.

    Args:
        pool: The actors.
        units: Units by their ids.
        give_up: Returns the result of a unit, by its id, that Ray could not finish, with the reason.
    """
    from ray.exceptions import RayError

    remaining = dict(units)
    last_error = "they ended without an error"
    for _ in range(MAX_ATTEMPTS):
        try:
            for result in _run_pipeline(pool, list(remaining.values())):
                del remaining[result["unit_id"]]
                yield result
        # An actor lost at the wrong moment ends a whole pipeline of Ray Data.
        except RayError as error:
            last_error = summarize_error(error)
        if not remaining:
            break
    for unit_id in remaining:
        yield give_up(
            unit_id, f"Ray lost its actors {MAX_ATTEMPTS} times ({last_error}); run the command again"
        )


class _BatchActor:
    """Actor that Ray Data calls with batches; fields and results are JSON texts."""

    def __init__(self, pool: Pool) -> None:
        self._actor = pool.actor(pool.settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        units = [
            PoolUnit(json.loads(str(text)), bytes(content))
            for text, content in zip(batch["fields"], batch["content"], strict=True)
        ]
        return {"result": [json.dumps(self._actor.do_unit(unit)) for unit in units]}


def _run_pipeline(pool: Pool, units: Sequence[PoolUnit]) -> Iterator[Json]:
    """Yield the results of one Ray Data pipeline with one actor pool."""
    import ray

    config = pool.config
    items = [{"fields": json.dumps(unit.fields), "content": unit.content} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(units)).map_batches(
        _BatchActor,
        fn_constructor_args=(pool,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(config.num_actors, len(units))),
        num_cpus=config.threads_per_actor,
        num_gpus=1 if config.use_gpu else 0,
        # UnitAttempts ends a unit's attempts. Ray may count an actor's death twice: its limits are higher.
        max_restarts=MAX_ATTEMPTS * len(units),
        max_task_retries=4 * MAX_ATTEMPTS,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["result"])
