"""MLflow serves the bundle that was registered and promoted, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from models.files import bytes_sha256, file_sha256
from models.serialization.bundle import encode_heads, encode_json, read_bundle
from pipeline.config.loading import read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError, RelevanceError, RetryableError
from pipeline.inference.predictor import load_predictor
from pipeline.registry import served_version
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.model_versions import register_version
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.served_version import LOG_VARIABLE, download_served_model, load_served_model
from tests.support.bundles import write_evaluated_bundle
from tests.support.champion import evaluation_of, write_champion
from tests.support.places import ROOT

PAIR = pd.DataFrame({"task": ["two"], "query": ["red lamp"], "ad_title": ["red lamp"]})


@dataclass(frozen=True)
class Store:
    """An embedded registry with a champion, version 1."""

    config: RunConfig
    model_dir: Path  # of version 1 in the artifact store

    @property
    def bundle_dir(self) -> Path:
        return self.model_dir / "data" / "artifacts" / "bundle"

    def load(self, version: str = "@champion") -> Any:
        """Load a version as `mlflow models serve` does."""
        return mlflow.pyfunc.load_model(f"models:/planted{version}", suppress_warnings=True)

    def change_mlmodel(self, change: Any) -> None:
        path = self.model_dir / "MLmodel"
        fields = yaml.safe_load(path.read_text())
        change(fields)
        path.write_text(yaml.safe_dump(fields))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Store:
    path, _ = write_champion(tmp_path_factory.mktemp("served"), tiny_llama)
    config = read_config(path, [])
    (mlmodel,) = (config.run_dir / "mlartifacts").rglob("MLmodel")
    return Store(config, mlmodel.parent)


@pytest.fixture
def store(intact: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The registry is set as the tracking URI; what a test changes in the version is undone."""
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    connect_mlflow(intact.config.tracking_uri)
    shutil.copytree(intact.model_dir, tmp_path / "copy")
    yield intact
    shutil.rmtree(intact.model_dir)
    shutil.copytree(tmp_path / "copy", intact.model_dir)


def alter_weights(store: Store) -> str:
    """Alter the bundle's weights, and make its manifest right again; return its new digest."""
    path = store.bundle_dir / "weights.safetensors"
    description = json.loads((store.bundle_dir / "bundle.json").read_bytes())
    tensors = load_file(path)
    tensors["heads.weight_KD"] += 1
    save_file(tensors, path, {"tasks": encode_heads(description)})
    manifest = json.loads((store.bundle_dir / "manifest.json").read_bytes())
    manifest["files"][path.name] = file_sha256(path)
    content = encode_json(manifest)
    (store.bundle_dir / "manifest.json").write_bytes(content)
    assert read_bundle(store.bundle_dir).sha256 == bytes_sha256(content)
    return bytes_sha256(content)


def test_champion_is_served(store: Store) -> None:
    answer = load_served_model("models:/planted@champion").predict(PAIR)
    assert answer["label_name"][0] in ("bad", "good")
    assert answer.equals(store.load().predict(PAIR))


def test_an_altered_bundle_is_not_served(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = alter_weights(store)
    with pytest.raises(DamagedInputError, match=f"has sha256 {sha256}, but the registry recorded"):
        store.load()
    store.change_mlmodel(lambda fields: fields["metadata"]["relevance"].update(bundle_sha256=sha256))
    with pytest.raises(DamagedInputError, match=f"no version of planted .* bundle {sha256[:12]}"):
        store.load()
    monkeypatch.setenv(LOG_VARIABLE, "none")
    with pytest.raises(DamagedInputError, match="no version of planted in the registry"):
        store.load()
    store.change_mlmodel(lambda fields: fields["metadata"]["relevance"].update(model="unknown"))
    monkeypatch.delenv(LOG_VARIABLE)
    with pytest.raises(
        ConfigError, match=f"no registry knows the served version of unknown; set .*{LOG_VARIABLE}"
    ):
        store.load()
    monkeypatch.setenv(LOG_VARIABLE, str(store.config.promotions_dir))
    with pytest.raises(GateRefusedError, match="is neither the champion of unknown nor one that a rollback"):
        store.load()


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["flavors"]["python_function"].update(code="code"),
        lambda fields: fields["flavors"]["python_function"].update(loader_module="planted"),
        lambda fields: fields["flavors"]["python_function"].update(data="data/artifacts/more"),
        lambda fields: fields["flavors"]["python_function"].update(predict_fn="__init__"),
        lambda fields: fields["flavors"].update(crate={"model": "x.R"}),
        lambda fields: fields.update(flavors=[]),
        lambda fields: fields.pop("metadata"),
        lambda fields: fields["metadata"]["relevance"].update(model="x' or name = 'planted"),
        lambda fields: fields["metadata"]["relevance"].update(bundle_sha256="' or 1"),
        lambda fields: fields["metadata"]["relevance"].pop("package_sha256"),
    ],
)
def test_altered_model_file_is_damaged_input(
    store: Store, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.change_mlmodel(change)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", None)  # is not reached
    with pytest.raises(DamagedInputError, match="register the run again"):
        load_served_model("models:/planted@champion")


def test_damaged_bundle_is_refused_before_mlflow_loads(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="folder is not empty"):
        download_served_model("models:/planted@champion", tmp_path)
    alter_weights(store)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", None)
    with pytest.raises(DamagedInputError, match="the registry recorded"):
        load_served_model("models:/planted@champion")


# MLflow is imported once, which takes seconds; each process has imported nothing of this project
FRESH_PROCESSES = """
import os, mlflow

mlflow.set_tracking_uri(TRACKING_URI)

def in_new_process(load):
    child = os.fork()
    if child == 0:
        try:
            load()
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(os.path.exists("planted-code-ran"), flush=True)

def checked():
    from pipeline.registry.served_version import load_served_model
    load_served_model("models:/planted@champion")

in_new_process(checked)
in_new_process(lambda: mlflow.pyfunc.load_model("models:/planted@champion"))
"""


@pytest.mark.e2e
def test_planted_code_does_not_run(store: Store, tmp_path: Path) -> None:
    planted = store.model_dir / "code" / "pipeline" / "registry"
    planted.mkdir(parents=True)
    for folder in (planted.parent, planted):
        (folder / "__init__.py").touch()
    marker = tmp_path / "planted-code-ran"
    (planted / "pyfunc_model.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    store.change_mlmodel(lambda fields: fields["flavors"]["python_function"].update(code="code"))
    script = FRESH_PROCESSES.replace("TRACKING_URI", repr(store.config.tracking_uri))
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = [line for line in shown.stdout.splitlines() if line]
    assert lines[0].startswith("DamagedInputError ") and "code 'code'" in lines[0], shown
    assert lines[1] == "False", "the check runs before the planted code"
    assert lines[-1] == "True", "MLflow alone runs it: the code is planted where it matters"


def test_only_the_champion_line_is_served(store: Store, tmp_path: Path) -> None:
    predictor, _ = load_predictor(store.bundle_dir)
    with torch.no_grad():
        predictor.model.heads.weight_KD += 1
    sha256 = write_evaluated_bundle(tmp_path / "bundle", predictor, store.config)
    version = register_version(store.config, tmp_path / "bundle", evaluation_of(sha256))
    with pytest.raises(GateRefusedError, match="is neither the champion of planted nor one that a rollback"):
        store.load(f"/{version}")
    client, log = connect_mlflow(store.config.tracking_uri), PromotionLog.from_config(store.config)
    log.promote(client, version, client.get_model_version("planted", version).tags, override="test")
    for served in (version, "1"):  # a rollback returns to version 1
        store.load(f"/{served}")
    log.roll_back(client, "test")
    store.load()
    with pytest.raises(GateRefusedError):
        store.load(f"/{version}")


def test_missing_promotion_log_is_refused_with_its_remedy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remedy = f"set {LOG_VARIABLE} to its folder .none: serve without it"
    for place in (tmp_path / "lost", Path("relative")):
        monkeypatch.setenv(LOG_VARIABLE, str(place))
        with pytest.raises(ConfigError, match=f"is not here: {place}; mount it, or {remedy}"):
            store.load()
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(DamagedInputError):
        store.load()
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: False)
    with pytest.raises(GateRefusedError):
        mlflow.pyfunc.load_model(str(store.model_dir))
    monkeypatch.setenv(LOG_VARIABLE, "none")
    store.load()
    assert "model planted served without its promotion log" in caplog.text


def test_version_is_served_without_registry_by_its_log(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: False)
    with pytest.raises(ConfigError, match="no registry knows the served version of planted"):
        mlflow.pyfunc.load_model(str(store.model_dir))
    monkeypatch.setenv(LOG_VARIABLE, str(store.config.promotions_dir))
    mlflow.pyfunc.load_model(str(store.model_dir))
    monkeypatch.undo()

    def refuse(*_: Any, **__: Any) -> None:
        raise RetryableError("registry does not answer")

    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", refuse)
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    with pytest.raises(RetryableError):
        mlflow.pyfunc.load_model(str(store.model_dir))
    monkeypatch.setenv(LOG_VARIABLE, str(store.config.promotions_dir))
    mlflow.pyfunc.load_model(str(store.model_dir))
    assert "registry not asked, the promotion log decides: registry does not answer" in caplog.text


def test_other_package_is_warned_of(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.load()
    assert "package differs" not in caplog.text
    monkeypatch.setattr(served_version, "package_sha256", lambda: "0" * 64)
    store.load()
    assert "package differs from the one that registered the version: sha256 000000000000" in caplog.text


def test_other_canary_probabilities_are_not_served(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluation.score_reference.canary_difference", lambda *_: 0.03)
    with pytest.raises(RelevanceError, match="canary probabilities differ"):
        store.load()


def test_requirements_are_pinned_and_public(store: Store) -> None:
    environment = yaml.safe_load((store.model_dir / "conda.yaml").read_text())
    (installed,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert (store.model_dir / "requirements.txt").read_text().split() == installed
    assert [line for line in installed if not re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", line)] == []
    names = {re.split(r"[\[=]", line)[0].lower() for line in installed}
    assert {"torch", "transformers", "mlflow"} <= names and not any("relevance" in name for name in names)


def test_version_has_no_code_of_its_own(store: Store) -> None:
    suffixes = {path.suffix for path in store.model_dir.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".json", ".md", ".safetensors", ".txt", ".yaml"}
    flavor = yaml.safe_load((store.model_dir / "MLmodel").read_text())["flavors"]["python_function"]
    assert not flavor.get("code") and flavor["loader_module"] == "pipeline.registry.pyfunc_model"
