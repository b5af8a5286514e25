"""Registered models in a real MLflow store, for tests of the promotion log."""

import json
from pathlib import Path
from typing import Any

from models.files import bytes_sha256
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.promotion_log import PromotionLog


def tags_of(version: str, against: str | None = None, passed: bool = True) -> dict[str, str]:
    """Return the tags of a version, with the gate's verdict against another one."""
    gate = {"gate": json.dumps({"against": against, "passed": passed, "sha256": "g"})} if against else {}
    sha256 = bytes_sha256(version.encode())
    return {
        "bundle_sha256": sha256,
        "data_gate": "passed",
        "macro_pr_auc": "0.8",
        "lexical_macro_pr_auc": "0.7",
        **gate,
    }


class Promotions:
    """Models with versions 1 to 3 in one store, each with a promotion log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client: Any = connect_mlflow(f"sqlite:///{folder}/mlflow.db")

    def log(self, model: str) -> PromotionLog:
        """Return the log of a model."""
        return PromotionLog(self.folder / "promotions" / model, model)

    def add_model(self, model: str, num_versions: int = 3) -> PromotionLog:
        """Register a model with versions, promote version 1, and return the log."""
        self.client.create_registered_model(model)
        for number in range(1, num_versions + 1):
            self.client.create_model_version(model, source=f"{self.folder}/none", tags=tags_of(str(number)))
        log = self.log(model)
        log.promote(self.client, "1", tags_of("1"))
        return log

    def aliases(self, model: str) -> dict[str, str]:
        """Return MLflow's aliases of a model."""
        aliases = self.client.get_registered_model(model).aliases
        return {alias: str(version) for alias, version in aliases.items()}
