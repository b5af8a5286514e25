"""Actors that work in the test process, without Ray."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.inference.actor_pool import Pool, PoolUnit
from pipeline.inference.row_predictor import RowPredictor
from pipeline.runtime.progress import SilentProgress


@dataclass
class InProcessEngine:
    """Engine with one actor at a time, which counts what it did."""

    pools: list[Pool] = field(default_factory=list)  # in the order in which they were asked for
    unit_ids: list[str] = field(default_factory=list)

    def do_units(
        self, pool: Pool, units: Mapping[str, PoolUnit], give_up: Callable[[str, str], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield each unit's result."""
        self.pools.append(pool)
        actor = pool.actor(pool.settings)
        for unit_id, unit in units.items():
            self.unit_ids.append(unit_id)
            yield actor.do_unit(unit)


def in_process_predictor(config: RunConfig, engine: InProcessEngine | None = None) -> RowPredictor:
    """Return a predictor of rows whose actors work in this process."""
    root: Path = config.run_dir / "predictions"
    return RowPredictor(root, engine or InProcessEngine(), SilentProgress(), "a-run")
