"""Registry on a real `mlflow server`: PostgreSQL, accounts, proxied artifacts, and failing servers."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.serialization.bundle import read_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError
from pipeline.evaluation.results import Evaluation
from pipeline.inference.predictor import build_predictor
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.mlflow_errors import translate_mlflow_errors
from pipeline.registry.model_versions import (
    get_version,
    read_gate_report,
    register_version,
    write_gate_report,
)
from pipeline.registry.promotion_gate import GateReport, Verdict
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.run_tracker import RunTracker
from pipeline.registry.version_files import fetch_version, resolve_champion
from pipeline.storage.filesystem import write_json
from tests.support.bundles import write_evaluated_bundle
from tests.support.champion import evaluation_of
from tests.support.planted import planted_config, write_planted
from tests.support.servers import (
    PASSWORD,
    ProxyFaults,
    mlflow_server,
    postgres_programs,
    postgres_server,
    proxy,
)
from tests.support.training_events import make_step

pytestmark = pytest.mark.e2e


class World:
    """A config and two evaluated bundles."""

    def __init__(self, root: Path, tiny_llama: Path) -> None:
        write_planted(root, num_rows=8)
        self.root = root
        self.plain = planted_config(root, str(tiny_llama))
        config = build_config(self.plain, "test")
        predictor = build_predictor(config)
        for number in (1, 2):
            with torch.no_grad():
                predictor.model.heads.weight_KD.mul_(number)
            (root / str(number)).mkdir()
            write_evaluated_bundle(root / str(number) / "bundle", predictor, config)
        config.validation_dir.mkdir(parents=True)
        write_json(config.profile_path, {"data_digest": "d" * 64})

    def bundle(self, number: int) -> Path:
        return self.root / str(number) / "bundle"

    def evaluation(self, number: int) -> Evaluation:
        return evaluation_of(read_bundle(self.bundle(number)).sha256)

    def config(self, uri: str, model: str) -> RunConfig:
        return build_config({**self.plain, "registry": {"model": model, "tracking_uri": uri}}, "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> World:
    return World(tmp_path_factory.mktemp("registry"), tiny_llama)


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on sqlite, without accounts."""
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db", accounts=False) as uri:
        yield uri


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten MLflow's timeouts."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on PostgreSQL, with accounts."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    folder = tmp_path_factory.mktemp("guarded")
    with postgres_server(programs) as backend, mlflow_server(folder, backend, accounts=True) as uri:
        yield uri


def test_registry_works_on_postgresql_with_accounts(world: World, guarded_server: str, account: None) -> None:
    config = world.config(guarded_server, "guarded")
    first = register_version(config, world.bundle(1), world.evaluation(1))
    second = register_version(config, world.bundle(2), world.evaluation(2))
    client = connect_mlflow(config.tracking_uri)
    log = PromotionLog.from_config(config)
    log.promote(client, first, get_version(client, "guarded", first).tags)
    write_gate_report(client, "guarded", GateReport(Verdict(second, first, ()), {}, ()))
    log.promote(client, second, get_version(client, "guarded", second).tags)
    assert client.get_registered_model("guarded").aliases == {
        "champion": second,
        "previous_champion": first,
        "challenger": second,
    }
    report = read_gate_report(get_version(client, "guarded", second))
    assert report is not None and report.verdict.passed
    fetched = resolve_champion(config)
    assert read_bundle(fetched.bundle_dir).sha256 == read_bundle(world.bundle(2)).sha256
    assert log.roll_back(client, "complaints").entry.version == first
    assert resolve_champion(config).version == first
    code = (
        "import mlflow, pandas as pd, sys\n"
        f"mlflow.set_tracking_uri({guarded_server!r})\n"
        "model = mlflow.pyfunc.load_model('models:/guarded@champion')\n"
        "print(len(model.predict(pd.DataFrame({'task': ['two'], 'query': ['red lamp'], 'ad_title': "
        "['blue shoes']}))))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=world.root, capture_output=True, text=True, timeout=200
    )
    assert loaded.returncode == 0 and loaded.stdout.split() == ["1"], loaded.stderr


def test_wrong_password_is_a_config_error_without_the_password(
    world: World, guarded_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong and secret")
    with pytest.raises(ConfigError, match="refuses the account.*set MLFLOW_TRACKING_USERNAME") as refused:
        register_version(world.config(guarded_server, "refused"), world.bundle(1), world.evaluation(1))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "request_path",
    ["model-versions/create", "registered-models/create", "runs/create", "registered-models/alias"],
)
def test_lost_answer_makes_no_second_version(world: World, plain_server: str, request_path: str) -> None:
    trouble = ProxyFaults()
    with proxy(plain_server, trouble) as uri:
        config = world.config(uri, f"lost-{request_path.replace('/', '-')}")
        trouble.lose_answers_to = request_path
        try:
            version = register_version(config, world.bundle(1), world.evaluation(1))
        except RetryableError:  # the same command again
            version = register_version(config, world.bundle(1), world.evaluation(1))
        assert trouble.lose_answers_to == "", "no answer was lost"
        client = connect_mlflow(config.tracking_uri)
        found = client.search_model_versions(f"name = '{config.registry.model}'")
        assert [str(one.version) for one in found] == [version]
        assert str(client.get_registered_model(config.registry.model).aliases["challenger"]) == version
        assert register_version(config, world.bundle(1), world.evaluation(1)) == version


@pytest.mark.parametrize(
    ("trouble_is", "message"), [({"status": 500}, "500 error responses"), ({"delay_s": 3.0}, "timed out")]
)
def test_failing_or_slow_server_is_given_up_in_time(
    world: World, plain_server: str, impatient: None, trouble_is: dict[str, Any], message: str
) -> None:
    trouble = ProxyFaults()
    with proxy(plain_server, trouble) as uri:
        vars(trouble).update(trouble_is)
        started_s = time.monotonic()
        with pytest.raises(RetryableError, match=message):
            register_version(world.config(uri, "slow"), world.bundle(1), world.evaluation(1))
        assert time.monotonic() - started_s < 60


def test_absent_server_error_says_what_to_do(world: World, impatient: None) -> None:
    with pytest.raises(RetryableError, match="does not answer.*check it or set registry.tracking_uri"):
        connect_mlflow(world.config("http://127.0.0.1:9", "absent").tracking_uri)


def test_training_goes_on_without_a_store(
    world: World, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = RunTracker(world.config("http://127.0.0.1:9", "absent"), "f" * 64, "digest")
    tracker.log_step(make_step())
    tracker.send()
    tracker.finish("FINISHED")
    assert tracker.run_id is None and caplog.text.count("Training goes on without it") == 1


def test_downloaded_champion_is_used_while_registry_is_down(
    world: World, plain_server: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = ProxyFaults()
    with proxy(plain_server, trouble) as uri:
        config = world.config(uri, "down")
        version = register_version(config, world.bundle(2), world.evaluation(2))
        client = connect_mlflow(config.tracking_uri)
        log = PromotionLog.from_config(config)
        log.promote(client, version, get_version(client, "down", version).tags)
        trouble.status = 503
        with pytest.raises(RetryableError, match="the champion by the promotion log, is not here yet"):
            resolve_champion(config)
        trouble.status = None
        there = resolve_champion(config)
        assert "using version" not in caplog.text
        trouble.status = 503
        assert resolve_champion(config) == there
        assert f"using version {version}, the champion by the promotion log" in caplog.text
        with pytest.raises(RetryableError), translate_mlflow_errors(config.tracking_uri):
            fetch_version(config, version)
    assert [entry.version for entry in log.read_files()] == [version]
    assert (
        json.loads((config.promotions_dir / "000001.json").read_text())["bundle_sha256"]
        == there.bundle_sha256
    )
