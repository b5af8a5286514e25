"""Bundles of predictors, with and without the reference that an evaluation adds."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from models.serialization.bundle import write_bundle
from pipeline.config.run import RunConfig
from pipeline.evaluation.score_reference import build_reference
from pipeline.inference.bundle_description import TrainingRecord
from pipeline.inference.predictor import Predictor, bundle_description
from pipeline.inference.probabilities import predict_probabilities
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import TRAINING, planted_rows

BATCH_TOKENS = 4_096


def reference_fields(predictor: Predictor, num_rows: int = 4) -> dict[str, Any]:
    """Return the content of reference.json for planted rows of task two."""
    table = pa.Table.from_pylist(planted_rows("two", num_rows, 1), ROW_SCHEMA)
    probabilities = {
        task.name: predict_probabilities(predictor, table, task, BATCH_TOKENS) for task in predictor.tasks
    }
    return build_reference(
        predictor, dict.fromkeys(probabilities, table), probabilities, BATCH_TOKENS
    ).to_json()


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
