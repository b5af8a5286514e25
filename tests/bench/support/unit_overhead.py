"""Time of the scoring loop for each of 10,000 units of two rows, without the model and without Ray.

python -m tests.bench.support.unit_overhead [UNITS]

The loop goes from the rounds of the plan to results in the run's progress: unit to JSON, attempts, rows read
and checked, text hashes, labels and manifest published with their syncs, result from JSON. A stub gives each
row its probabilities. Prints the time as it is, and without waiting for the disk.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inference import labels
from pipeline.inference.actor_pool import Pool, PoolUnit
from pipeline.inference.step_plan import Step, planned
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import actor
from pipeline.scoring.duplicates import ScoringRounds
from tests.support.planted import planted_rows
from tests.support.scoring_world import World, full_plan
from tests.support.tiny import write_tiny_llama

UNITS, ROWS = 10_000, 2


@planned
def stub_probabilities(
    predictor: Any, table: pa.Table, task: Any, batch_tokens: int, prefetch: bool
) -> Iterator[Step[Any]]:
    """Plan fixed probabilities as one step."""
    probability_NC = np.full((table.num_rows, len(task.labels)), 1 / len(task.labels))
    step = Step(np.arange(table.num_rows), lambda: probability_NC)
    yield step
    return step.result


def in_this_process(
    scorer: actor.UnitScorer,
) -> Callable[[Pool, Mapping[str, PoolUnit], Any], Iterator[dict[str, Any]]]:
    """Return a stand-in for `do_units`, whose units and results are JSON texts too."""

    def do_units(pool: Pool, units: Mapping[str, PoolUnit], give_up: Any) -> Iterator[dict[str, Any]]:
        for unit in units.values():
            sent = PoolUnit(json.loads(json.dumps(unit.fields)), unit.content)
            yield json.loads(json.dumps(scorer.do_unit(sent)))

    return do_units


def measure(root: Path, num_units: int) -> float:
    """Return the seconds of the loop."""
    from jobs.commands.score import score_rounds

    world = World(root, write_tiny_llama(root / "tiny"))
    folder = root / "to_score" / "task=two"
    for number in range(2, num_units):
        rows = planted_rows("two", ROWS, number, labeled=False)
        pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / f"part-{number}.parquet")
    scorer, plan = world.scorer(), full_plan(world.config, world.sha256)
    assert len(plan.to_do) == num_units
    rounds = ScoringRounds(plan, world.config.scores_location, scorer.actor.attempts_dir)
    with (
        patch.object(labels, "plan_probabilities", stub_probabilities),
        patch.object(actor, "do_units", in_this_process(scorer)),
    ):
        started_s = time.monotonic()
        results = list(score_rounds(rounds, scorer.settings))
        seconds = time.monotonic() - started_s
    assert len(results) == num_units and not any(result.error for result in results), results[0]
    return seconds


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    num_units = int(arguments[0]) if arguments else UNITS
    found = {}
    for name, sync in (("unit_overhead_ms", os.fsync), ("without_syncs_ms", lambda descriptor: None)):
        with tempfile.TemporaryDirectory() as folder, patch.object(os, "fsync", sync):
            found[name] = round(1e3 * measure(Path(folder), num_units) / num_units, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
