"""Versions that `relevance register` made, by their tags, spelling, duplicates and gate reports."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from models.serialization.bundle import read_bundle, write_bundle
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.registry import model_versions
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.model_versions import (
    REQUIRED_TAGS,
    check_registered,
    get_version,
    read_gate_report,
    register_version,
)
from tests.support.champion import evaluation_of, write_bundle_to_register


def test_bundle_without_canaries_is_not_registered(tmp_path: Path, tiny_llama: Path) -> None:
    config, _ = write_bundle_to_register(tmp_path, tiny_llama)
    bundle = read_bundle(tmp_path / "made" / "bundle")
    folder = tmp_path / "trained"
    sha256 = write_bundle(folder, bundle.description, bundle.tensors, bundle.tokenizer_dir)
    with pytest.raises(DamagedInputError, match=r"reference\.json missing"):
        register_version(config, folder, evaluation_of(sha256))
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("missing", sorted(REQUIRED_TAGS))
def test_version_without_one_of_its_tags_is_refused(missing: str) -> None:
    tags = dict.fromkeys(REQUIRED_TAGS, "x")
    check_registered(SimpleNamespace(version="1", name="planted", tags=tags))
    assert "data_gate" in tags, "a version without the gate's verdict must not count as passed"
    del tags[missing]
    with pytest.raises(ConfigError, match="was not made by `relevance register`"):
        check_registered(SimpleNamespace(version="1", name="planted", tags=tags))


class Client:
    """A client of a store with versions 1 to 3 of one bundle."""

    def __init__(self) -> None:
        self.versions = ["1", "2", "3"]

    def get_model_version(self, model: str, version: str) -> Any:
        return SimpleNamespace(version=str(int(version)), name=model)

    def search_model_versions(self, query: str) -> list[Any]:
        return [SimpleNamespace(version=version) for version in self.versions]

    def get_registered_model(self, model: str) -> Any:
        return SimpleNamespace(aliases={})

    def delete_model_version(self, model: str, version: str) -> None:
        """Delete a version, after another process did so."""
        self.versions.remove(version)
        raise MlflowException("not found", RESOURCE_DOES_NOT_EXIST)


def test_version_in_another_spelling_is_refused() -> None:
    """MLflow reads each of these as 1."""
    assert get_version(Client(), "planted", "1").version == "1"
    for spelling in ("01", "+1", " 1", "\uff11"):
        with pytest.raises(ConfigError, match="version not valid: .*; write it as 1"):
            get_version(Client(), "planted", spelling)


def test_duplicate_that_another_process_deleted_is_no_error() -> None:
    client = Client()
    log = SimpleNamespace(model="planted", read=lambda client: [])
    assert model_versions._find_version(client, log, "d" * 64) == "1"
    assert client.versions == ["1"]


@pytest.mark.parametrize("content", [b"", b'{"passed":', b"[]", b'{"a":1,"a":1}', b'{"a":NaN}', b"\xff"])
def test_gate_report_that_is_no_json_is_damaged_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "report.json").write_bytes(content)
    monkeypatch.setattr(
        mlflow.artifacts, "download_artifacts", lambda uri, dst_path: str(tmp_path / "report.json")
    )
    tag = json.dumps({"against": "1", "passed": True, "sha256": "0" * 64})
    record = SimpleNamespace(version="2", run_id="run", tags={"gate": tag})
    with pytest.raises(DamagedInputError, match="gate report or tag was altered: gate/version-2-against-1"):
        read_gate_report(record)


def test_missing_gate_report_is_damaged_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(uri: str, dst_path: str) -> str:
        raise MlflowException("Failed to download artifacts", RESOURCE_DOES_NOT_EXIST)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", find_nothing)
    tag = json.dumps({"against": "1", "passed": True, "sha256": "0" * 64})
    record = SimpleNamespace(version="2", run_id="run", tags={"gate": tag})
    missing = "gate report missing: gate/version-2-against-1.json of MLflow run run; evaluate version 2 again"
    with pytest.raises(DamagedInputError, match=missing):
        read_gate_report(record)


@pytest.mark.failures
def test_gate_report_that_mlflow_lacks_is_damaged_input(tmp_path: Path) -> None:
    client = connect_mlflow(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("planted", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    tag = json.dumps({"against": "1", "passed": True, "sha256": "0" * 64})
    record = SimpleNamespace(version="2", run_id=run_id, tags={"gate": tag})
    missing = f"gate report missing: gate/version-2-against-1.json of MLflow run {run_id}; evaluate version 2"
    with pytest.raises(DamagedInputError, match=missing):
        read_gate_report(record)
