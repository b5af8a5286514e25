"""Versions predicted by a model in this process."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.inference.predictor import Predictor
from pipeline.inference.probabilities import plan_row_logits


def predicted_version(
    predictor: Predictor, tables: Mapping[str, pa.Table], batch_tokens: int = 4_096
) -> PredictedVersion:
    """Return the predictor's version with its logits of contract rows."""
    logits = {
        task.name: plan_row_logits(predictor, tables[task.name], task, batch_tokens).run()
        for task in predictor.tasks
        if task.name in tables
    }
    return PredictedVersion(predictor.tasks, predictor.calibration, logits)
