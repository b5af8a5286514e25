"""Champion without a training: an untrained model that is registered and promoted in an embedded store."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.evaluation.results import Evaluation, Interval, MetricsSummary
from pipeline.inference.predictor import build_predictor
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.model_versions import get_version, register_version
from pipeline.registry.promotion_log import PromotionLog
from pipeline.storage.filesystem import write_json
from tests.support.bundles import write_evaluated_bundle
from tests.support.planted import planted_config, write_config, write_planted

DATA_DIGEST = "d" * 64

PR_AUC = Interval(0.9, 0.8, 1.0)
SUMMARY = MetricsSummary(
    tasks={},
    macro_pr_auc={"model": PR_AUC, "lexical": Interval(0.7, 0.8, 1.0)},
    worst_task="two",
    model_minus_lexical_macro_pr_auc=PR_AUC,
)


def evaluation_of(bundle_sha256: str) -> Evaluation:
    """Return an evaluation that beats the lexical floor."""
    return Evaluation(bundle_sha256, DATA_DIGEST, SUMMARY, ())


def write_bundle_to_register(root: Path, tiny_llama: Path) -> tuple[RunConfig, str]:
    """Write a config, rows, and the bundle of an untrained model that is not registered.

    The promotion log and the store are beside the runs: a run of another name finds the champion, and has
    none of its files.

    Returns:
        (the config, digest of the bundle in root/made/bundle).
    """
    write_planted(root, num_rows=8)
    registry = {
        "model": "planted",
        "tracking_uri": f"sqlite:///{root}/mlflow.db",
        "promotions": str(root / "promotions"),
    }
    plain = planted_config(root, str(tiny_llama), registry=registry)
    config = build_config(plain, "test")
    predictor = build_predictor(config)
    sha256 = write_evaluated_bundle(root / "made" / "bundle", predictor, config)
    config.validation_dir.mkdir(parents=True)
    write_json(config.profile_path, {"data_digest": DATA_DIGEST})
    write_config(root / "config.yaml", plain)
    return config, sha256


def write_champion(root: Path, tiny_llama: Path) -> tuple[Path, dict[str, Any]]:
    """Register and promote version 1 of `write_bundle_to_register`.

    Returns:
        (path of the config, its settings).
    """
    config, sha256 = write_bundle_to_register(root, tiny_llama)
    version = register_version(config, root / "made" / "bundle", evaluation_of(sha256))
    client = connect_mlflow(config.tracking_uri)
    tags = get_version(client, "planted", version).tags
    PromotionLog.from_config(config).promote(client, version, tags)
    path = root / "config.yaml"
    return path, yaml.safe_load(path.read_text())
