"""Registered versions to be measured beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import is_shared_task
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.inference.bundle_description import BundleDescription, read_described_bundle
from pipeline.inference.predictor import BundleModel
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.version_files import fetch_version


def champion_version(config: RunConfig) -> str:
    """Return the champion's version.

    Raises:
        ConfigError: There is no champion.
    """
    champion = PromotionLog.from_config(config).champion(connect_mlflow(config.tracking_uri))
    if champion is None:
        model = config.registry.model
        raise ConfigError(f"model {model} has no champion to compare with; run `relevance promote` first")
    return champion


@dataclass(frozen=True)
class ComparableVersion:
    """A registered version that may be measured on the test rows of a config."""

    model: BundleModel
    description: BundleDescription

    def own_tables(self, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
        """Return those rows by task that are of the version's tasks."""
        return {task.name: tables[task.name] for task in self.description.tasks if task.name in tables}

    def predicted(self, logits: Mapping[str, np.ndarray]) -> PredictedVersion:
        """Return the version with its logits (N, C) by task."""
        return PredictedVersion.of(self.description, logits)


def fetch_comparable_version(config: RunConfig, version: str) -> ComparableVersion:
    """Fetch and verify a registered version, to measure it on the test rows of a config.

    Raises:
        ConfigError: The version was trained on some of the test rows, or on other labels.
    """
    files = fetch_version(config, version)
    _, description = read_described_bundle(files.bundle_dir, files.bundle_sha256)
    share = description.split.test_share
    if share < config.split.test_share:
        raise ConfigError(
            f"version {version} was trained with split.test_share {share}, the config has "
            f"{config.split.test_share}: the version saw some of the test rows; lower split.test_share"
        )
    for task in description.tasks:
        is_shared_task(task, config.tasks, f"version {version} and in the config")  # checks the labels
    return ComparableVersion(BundleModel(files.bundle_dir, files.bundle_sha256), description)
