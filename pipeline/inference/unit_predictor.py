"""Actor that predicts the logits of one work unit at a time and publishes them.

A unit is rows of one task. Its table has PREDICTION_SCHEMA.

Shape legend: N rows of a unit, C labels of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import check_known_task
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.inference.actor_pool import PoolUnit
from pipeline.inference.attempts import UnitAttempts
from pipeline.inference.model_actor import ModelActor, ModelActorSettings, UnitFailure, UnitWork
from pipeline.inference.probabilities import plan_row_logits
from pipeline.inference.step_plan import Plan
from pipeline.publishing.unit_store import PublishedFile, is_published, publish_tables
from pipeline.runtime.run_log import log_work_unit
from pipeline.storage.object_store import open_store

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("task", pa.string(), False),
        pa.field("logits", pa.list_(pa.float64()), False),  # one for each label of the task
    ]
)


@dataclass(frozen=True)
class PredictionSettings:
    """Settings of the actors that predict with one model."""

    location: str  # of the model's published predictions
    model_actor: ModelActorSettings


@dataclass(frozen=True)
class PredictionResult:
    """Outcome of a unit: published, or failed with a reason."""

    unit_id: str
    failure: UnitFailure | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PredictionResult:
        """Parse the sent form."""
        failure = fields["failure"]
        return cls(fields["unit_id"], UnitFailure(**failure) if failure else None)

    def to_json(self) -> dict[str, Any]:
        """Return the form in which an actor sends it."""
        return asdict(self)


@dataclass(frozen=True)
class PredictionUnit:
    """Rows of one task to predict."""

    unit_id: str
    task: str
    rows_name: str  # of the set of rows, such as "test"; the folder of the unit's table

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PredictionUnit:
        """Parse the sent form."""
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the form in which it is sent to an actor."""
        return asdict(self)


class UnitPublisher:
    """Publisher of what an actor computes for its units."""

    def __init__(self, settings: PredictionSettings, actor: ModelActor) -> None:
        self.settings, self.actor, self.store = settings, actor, open_store(settings.location)

    def do(self, unit: PredictionUnit, compute: Callable[[UnitAttempts], pa.Table]) -> PredictionResult:
        """Compute and publish the table of a unit. Errors of the unit are part of the result."""

        def find_result() -> PredictionResult | None:
            return PredictionResult(unit.unit_id) if is_published(self.store, unit.unit_id) else None

        def publish(attempts: UnitAttempts) -> PredictionResult:
            tables = {unit.rows_name: compute(attempts)}
            publish_tables(self.store, unit.unit_id, tables, lambda files: self._manifest(unit, files))
            return PredictionResult(unit.unit_id)

        work = UnitWork(unit.unit_id, find_result, prepare=lambda: None, do=publish)
        with log_work_unit(unit.unit_id):
            result = self.actor.work_on(work)
        return PredictionResult(unit.unit_id, result) if isinstance(result, UnitFailure) else result

    def _manifest(self, unit: PredictionUnit, files: Mapping[str, PublishedFile]) -> dict[str, Any]:
        """Return the manifest, which says on what the table was computed."""
        import torch

        return {
            **unit.to_json(),
            "encoder_version": ENCODER_VERSION,
            "device": self.actor.predictor.device.type,
            "threads": torch.get_num_threads(),
            "batch_tokens": self.settings.model_actor.actors.batch_tokens,
            "files": [asdict(file) for file in files.values()],
        }


class UnitPredictor:
    """Actor with one verified model."""

    def __init__(self, settings: PredictionSettings) -> None:
        self.batch_tokens = settings.model_actor.actors.batch_tokens
        # no canary to check: canaries are recorded from predictions
        self.actor = ModelActor(settings.model_actor, lambda predictor, bundle: None)
        self.publisher = UnitPublisher(settings, self.actor)

    def do_unit(self, unit: PoolUnit) -> dict[str, Any]:
        """Predict and publish the contract rows of a unit."""
        sent, rows = PredictionUnit.from_json(unit.fields), read_rows(unit.content)
        return self.publisher.do(sent, lambda attempts: self._predict(sent, rows, attempts)).to_json()

    def _predict(self, unit: PredictionUnit, rows: pa.Table, attempts: UnitAttempts) -> pa.Table:
        predictor = self.actor.predictor
        task = check_known_task(unit.task, predictor.tasks, "the model's bundle")

        def plan_rows(part: pa.Table, is_retry: bool) -> Plan[np.ndarray]:
            return plan_row_logits(predictor, part, task, self.batch_tokens, prefetch=not is_retry)

        logits_NC = self.actor.run_part(plan_rows, rows, attempts, attempts.retry_candidates())
        columns = {
            "row_id": rows.column("row_id"),
            "task": [task.name] * len(rows),
            "logits": logits_NC.tolist(),
        }
        return pa.table(columns, schema=PREDICTION_SCHEMA)


def write_rows(rows: pa.Table) -> bytes:
    """Return rows as an Arrow stream, to be sent to an actor."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def read_rows(content: bytes) -> pa.Table:
    """Return the rows in an Arrow stream."""
    return pa.ipc.open_stream(content).read_all()
