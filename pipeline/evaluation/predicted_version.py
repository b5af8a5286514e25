"""A version with its logits of the rows that it is measured on.

Shape legend: N rows of a task, C its labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task, check_known_task
from pipeline.evaluation.task_metrics import Predictions, market_column, predictions_from_logits
from pipeline.inference.bundle_description import BundleDescription
from pipeline.inference.calibration import Calibration, calibrated_probabilities


@dataclass(frozen=True)
class PredictedVersion:
    """A version's tasks and calibration, and its logits (N, C) by task."""

    tasks: tuple[Task, ...]
    calibration: Mapping[str, Calibration]  # by task
    logits: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, description: BundleDescription, logits: Mapping[str, np.ndarray]) -> "PredictedVersion":
        """Return the version that a bundle describes."""
        return cls(description.tasks, description.calibration, logits)

    def label_probabilities(self, task_name: str) -> np.ndarray:
        """Return the calibrated label probabilities (N, C) of a task's rows."""
        task = self._task(task_name)
        return calibrated_probabilities(self.logits[task_name], self.calibration[task_name], task)

    def predict(self, task_name: str, table: pa.Table) -> Predictions:
        """Return the predictions for a task's rows, which are those of the logits."""
        calibration = self.calibration[task_name]
        return predictions_from_logits(
            self.logits[task_name], calibration, self._task(task_name), market_column(table)
        )

    def _task(self, name: str) -> Task:
        return check_known_task(name, self.tasks, "a version")
