"""The predictor of rows of a command, whose actors work on Ray."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster import check_local_gpus, given_address, has_node_for, ray_cluster
from jobs.command_run import CommandRun
from pipeline.config.run import RunConfig
from pipeline.config.scoring import ScoringConfig
from pipeline.inference.actor_pool import Pool, PoolUnit, do_units
from pipeline.inference.attempts import any_attempt_began, attempt_evidence
from pipeline.inference.row_predictor import RowPredictor
from pipeline.runtime.ray_resources import format_resources, free_resources
from pipeline.runtime.waiting import announce_wait

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def row_predictor_of(config: RunConfig, run: CommandRun) -> Iterator[RowPredictor]:
    """Open the predictor of a command. Ray starts when there are rows to predict, and ends with the context.

    Raises:
        RelevanceError: As raised by `ray_cluster`, at the first rows.
    """
    with contextlib.ExitStack() as stack:
        engine = RayEngine(config, run, stack)
        yield RowPredictor(config.run_dir / "predictions", engine, run, run.id, run.log)


@dataclass
class RayEngine:
    """Actors on the Ray cluster of a command, which ends with the stack."""

    config: RunConfig
    run: CommandRun
    stack: contextlib.ExitStack
    is_started: bool = False

    def do_units(
        self, pool: Pool, units: Mapping[str, PoolUnit], give_up: Callable[[str, str], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield each unit's result, and name the evidence of failed ones in the record."""
        self._start(min(pool.config.num_actors, len(units)) * pool.config.use_gpu)
        warn_without_node(pool.config)
        has_failed = True
        try:
            with announce_first_actor(pool.attempts_dir, pool.config):
                failures = 0
                for result in do_units(pool, units, give_up):
                    failures += bool(result["failure"])
                    yield result
            has_failed = failures > 0
        finally:
            if has_failed:  # otherwise the caller removes it
                self.run.add_evidence(*attempt_evidence(pool.attempts_dir))

    def _start(self, num_gpus: int) -> None:
        """Start or join the cluster, once for all pools of the command.

        Args:
            num_gpus: GPUs that the next pool needs.
        """
        if not self.is_started:
            both = (self.config.evaluation_actors, self.config.scoring)
            num_cpus = max(actors.num_actors * actors.threads_per_actor for actors in both)
            self.stack.enter_context(ray_cluster(num_cpus, num_gpus))
            self.is_started = True
        elif given_address() is None:
            check_local_gpus(num_gpus)


def warn_without_node(actors: ScoringConfig) -> None:
    """Warn that Ray will wait if no node of the connected cluster is large enough for an actor."""
    if not has_node_for(actors.threads_per_actor, int(actors.use_gpu)):
        logger.warning(
            f"  no node of the cluster has {format_resources(resources_of(actors))} for an actor "
            "(threads_per_actor, use_gpu of scoring or evaluation); waiting for one"
        )


@contextlib.contextmanager
def announce_first_actor(attempts_dir: Path, actors: ScoringConfig) -> Iterator[None]:
    """Announce a long wait until the first actor has loaded its model.

    Args:
        attempts_dir: Where the actors record their attempts.
        actors: Their settings.
    """

    def reason() -> str:
        return (
            f"the first of the actors of {format_resources(resources_of(actors))} to load the model; the "
            f"cluster has {format_resources(free_resources())} free"
        )

    with announce_wait(reason, is_over=lambda: any_attempt_began(attempts_dir)):
        yield


def resources_of(actors: ScoringConfig) -> dict[str, float]:
    """Return the resources of one actor."""
    return {"CPU": float(actors.threads_per_actor), "GPU": float(actors.use_gpu)}
