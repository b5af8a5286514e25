"""Predictors of registered versions."""

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import is_shared_task
from pipeline.inference.predictor import Predictor, load_predictor
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


def load_version_predictor(config: RunConfig, version: str) -> Predictor:
    """Load a registered version for the test rows of a config.

    Raises:
        ConfigError: The version was trained on some of the test rows, or on other labels.
    """
    files = fetch_version(config, version)
    predictor, bundle = load_predictor(files.bundle_dir, files.bundle_sha256)
    share = bundle.description["split"]["test_share"]
    if share < config.split.test_share:
        raise ConfigError(
            f"version {version} was trained with split.test_share {share}, the config has "
            f"{config.split.test_share}: the version saw some of the test rows; lower split.test_share"
        )
    for task in predictor.tasks:
        is_shared_task(task, config.tasks, f"version {version} and in the config")  # checks the labels
    return predictor
