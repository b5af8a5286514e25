"""Actor that times two models on the same rows, in turn in one process.

Its unit is a few rows of each task; the unit's table has SPEED_SCHEMA.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.serialization.bundle import Bundle
from pipeline.config.tasks import check_known_task
from pipeline.inference.actor_pool import PoolUnit
from pipeline.inference.attempts import UnitAttempts
from pipeline.inference.model_actor import ModelActor
from pipeline.inference.predictor import BundleModel, Predictor
from pipeline.inference.probabilities import plan_row_logits
from pipeline.inference.unit_predictor import (
    PredictionSettings,
    PredictionUnit,
    UnitPublisher,
    read_rows,
)

TIMED_ROWS = 256  # in a round
TIMED_ROUNDS = 3

SPEED_SCHEMA = pa.schema([pa.field("model_s", pa.float64(), False), pa.field("other_s", pa.float64(), False)])


@dataclass(frozen=True)
class SpeedSettings:
    """Settings of the actor."""

    prediction: PredictionSettings  # with the model whose speed is of interest
    other: BundleModel


class SpeedTrial:
    """Actor with two verified models."""

    def __init__(self, settings: SpeedSettings) -> None:
        self.settings = settings
        self.actor = ModelActor(settings.prediction.model_actor, self._load_other)
        self.publisher = UnitPublisher(settings.prediction, self.actor)

    def do_unit(self, unit: PoolUnit) -> dict[str, Any]:
        """Time both models on the rows of a unit, whose column `task` names each row's task."""
        rows = read_rows(unit.content)
        sent = PredictionUnit.from_json(unit.fields)
        return self.publisher.do(sent, lambda attempts: self._time(rows, attempts)).to_json()

    def _load_other(self, predictor: Predictor, bundle: Bundle) -> None:
        self.other, _ = self.settings.other.load(predictor.device)

    def _time(self, rows: pa.Table, attempts: UnitAttempts) -> pa.Table:
        names = rows.column("task").unique().to_pylist()
        tables = {name: rows.filter(pc.equal(rows.column("task"), name)) for name in names}
        seconds: list[list[float]] = []
        for _ in range(TIMED_ROUNDS):
            seconds.append([])
            for predictor in (self.actor.predictor, self.other):
                started_s = time.perf_counter()
                for name, table in tables.items():
                    self._predict(predictor, name, table, attempts)
                seconds[-1].append(time.perf_counter() - started_s)
        model_s, other_s = zip(*seconds, strict=True)
        return pa.table({"model_s": model_s, "other_s": other_s}, schema=SPEED_SCHEMA)

    def _predict(self, predictor: Predictor, name: str, table: pa.Table, attempts: UnitAttempts) -> None:
        task = check_known_task(name, predictor.tasks, "a version to compare")
        batch_tokens = self.settings.prediction.model_actor.actors.batch_tokens
        plan = plan_row_logits(predictor, table, task, batch_tokens)
        self.actor.run_plan(plan, table.column("row_id"), attempts)


def join_timed_rows(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the first rows of each task as one table with a column `task`."""
    parts = []
    for name, table in tables.items():
        rows = table.slice(0, max(1, TIMED_ROWS // len(tables)))
        parts.append(rows.append_column("task", pa.array([name] * rows.num_rows, pa.string())))
    return pa.concat_tables(parts)


def speed_ratio(table: pa.Table) -> float:
    """Return the model's rows per second divided by the other's, by the medians of the rounds."""
    model_s, other_s = (np.median(table.column(name).to_numpy()) for name in SPEED_SCHEMA.names)
    return float(other_s / model_s)
