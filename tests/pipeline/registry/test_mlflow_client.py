"""The connection to MLflow."""

import time
from pathlib import Path

import mlflow
import pytest

from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.runtime import waiting


def test_slow_store_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def search(self: mlflow.MlflowClient, **arguments: int) -> list[str]:
        time.sleep(0.5)
        return []

    monkeypatch.setattr(waiting, "FIRST_S", 0.05)
    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", search)
    with caplog.at_level("INFO"):
        connect_mlflow(f"sqlite:///{tmp_path}/mlflow.db")
    assert f"waiting for MLflow at sqlite:///{tmp_path}/mlflow.db to answer" in caplog.text
