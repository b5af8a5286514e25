"""Bundles of predictors, with and without the reference that an evaluation adds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.serialization.bundle import write_bundle
from pipeline.config.run import RunConfig
from pipeline.evaluation.score_reference import (
    PredictedRows,
    ScoreReference,
    build_reference,
    canary_tables,
)
from pipeline.inference.bundle_description import TrainingRecord
from pipeline.inference.predictor import Predictor, bundle_description
from pipeline.inference.probabilities import predict_probabilities
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import TRAINING, planted_rows

BATCH_TOKENS = 4_096


def reference_fields(predictor: Predictor, num_rows: int = 4) -> dict[str, Any]:
    """Return the content of reference.json for planted rows of task two."""
    table = pa.Table.from_pylist(planted_rows("two", num_rows, 1), ROW_SCHEMA)
    return reference_of(predictor, {task.name: table for task in predictor.tasks}).to_json()


def reference_of(
    predictor: Predictor, tables: Mapping[str, pa.Table], batch_tokens: int = BATCH_TOKENS
) -> ScoreReference:
    """Return the reference of a predictor, as an evaluation on these rows builds it."""

    def predicted(of_tables: Mapping[str, pa.Table]) -> dict[str, PredictedRows]:
        return {
            task.name: PredictedRows(
                of_tables[task.name],
                predict_probabilities(predictor, of_tables[task.name], task, batch_tokens),
            )
            for task in predictor.tasks
            if task.name in of_tables
        }

    canaries = predicted(canary_tables(predictor.tasks, tables))
    return build_reference(predictor.tasks, canaries, predicted(tables))


def write_trained_bundle(
    folder: Path,
    predictor: Predictor,
    config: RunConfig,
    training: TrainingRecord = TRAINING,
    reference: dict[str, Any] | None = None,
) -> str:
    """Write a predictor as a bundle, as a training does; return its sha256."""
    description = bundle_description(predictor, config, training)
    trained = predictor.model.trainable_state()
    return write_bundle(folder, description, trained, predictor.backbone.folder, reference)


def write_evaluated_bundle(folder: Path, predictor: Predictor, config: RunConfig) -> str:
    """Write a predictor as a bundle that can be registered and scored; return its sha256."""
    return write_trained_bundle(folder, predictor, config, reference=reference_fields(predictor))
