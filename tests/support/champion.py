"""A champion without a training: a fresh model's bundle, registered and promoted in a store of the embedded
kind.
"""

from pathlib import Path
from typing import Any

from models.serialization.bundle import write_bundle
from pipeline.config.loading import build_config
from pipeline.inference.predictor import describe, fresh_judge
from pipeline.registry.mlflow_client import mlflow_client
from pipeline.registry.model_versions import check_version, register_version
from pipeline.registry.promotion_log import promote
from pipeline.storage.filesystem import write_json
from tests.support.planted import planted_config, write_config, write_planted

FIGURE = {"value": 0.9, "low": 0.8, "high": 1.0}
EVALUATION = {
    "tasks": {},
    "macro_pr_auc": {"model": FIGURE, "lexical": {**FIGURE, "value": 0.7}},
    "model_minus_lexical_macro_pr_auc": FIGURE,
    "worst_task": "two",
}
TRAINING = {
    "fingerprint": "f" * 64,
    "data_digest": "d" * 64,
    "steps": 1,
    "rows": 8,
    "trainable_parameters": 1,
    "best": None,
}


def write_champion(root: Path, tiny_llama: Path) -> tuple[Path, dict[str, Any]]:
    """A config whose model's version 1 is champion, and its settings. The log and the store lie beside the
    runs, so that a run of another name finds the champion and has none of its files.
    """
    write_planted(root, num_rows=8)
    registry = {
        "model": "planted",
        "tracking_uri": f"sqlite:///{root}/mlflow.db",
        "promotions": str(root / "promotions"),
    }
    plain = planted_config(root, str(tiny_llama), registry=registry)
    config = build_config(plain, "test")
    judge = fresh_judge(config)
    tensors = {
        name: tensor.detach() for name, tensor in judge.model.named_parameters() if tensor.requires_grad
    }
    sha256 = write_bundle(
        root / "made" / "bundle", describe(judge, config, TRAINING), tensors, judge.backbone.folder
    )
    config.validation_dir.mkdir(parents=True)
    write_json(config.profile_path, {"data_digest": "d" * 64})
    version = register_version(config, root / "made" / "bundle", {**EVALUATION, "bundle_sha256": sha256})
    client = mlflow_client(config)
    promote(config, client, version, dict(check_version(client, "planted", version).tags))
    return write_config(root / "config.yaml", plain), plain
