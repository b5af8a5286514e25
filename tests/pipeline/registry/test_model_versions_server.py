"""The registry on a real `mlflow server`: PostgreSQL, accounts and proxied artifacts; and servers that fail
in their ways.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError
from pipeline.inference.predictor import describe, fresh_judge
from pipeline.registry.mlflow_client import mlflow_client, told_errors
from pipeline.registry.model_versions import check_version, read_verdict, register_version, write_verdict
from pipeline.registry.promotion_log import promote, read_promotions, roll_back
from pipeline.registry.run_tracker import RunTracker
from pipeline.registry.version_files import fetch_version, resolve_champion
from pipeline.storage.filesystem import write_json
from tests.support.planted import planted_config, write_planted
from tests.support.servers import PASSWORD, Trouble, mlflow_server, postgres_programs, postgres_server, proxy

pytestmark = pytest.mark.e2e

FIGURE = {"value": 0.9, "low": 0.8, "high": 1.0}
EVALUATION = {
    "tasks": {},
    "macro_pr_auc": {"model": FIGURE, "lexical": {**FIGURE, "value": 0.7}},
    "model_minus_lexical_macro_pr_auc": FIGURE,
    "worst_task": "two",
}

STEP = {
    "step": 1,
    "loss": 0.5,
    "learning_rate": 0.01,
    "rows_per_s": 8.0,
    "tokens_per_s": 80.0,
    "gradient_norm": 1.0,
    "mfu": 0.3,
    "tokens": 10,
    "seconds": {},
    "task_losses": {},
    "group_gradient_norms": {},
}


class World:
    """An evaluated bundle in a run's folder, and others like it."""

    def __init__(self, root: Path, tiny_llama: Path) -> None:
        write_planted(root, num_rows=8)
        self.root = root
        self.plain = planted_config(root, str(tiny_llama))
        config = build_config(self.plain, "test")
        judge = fresh_judge(config)
        training = {
            "fingerprint": "f" * 64,
            "data_digest": "d" * 64,
            "steps": 1,
            "rows": 8,
            "trainable_parameters": 1,
            "best": None,
        }
        for number in (1, 2):
            tensors = {
                name: tensor.detach() * number
                for name, tensor in judge.model.named_parameters()
                if tensor.requires_grad
            }
            (root / str(number)).mkdir()
            write_bundle(
                root / str(number) / "bundle",
                describe(judge, config, training),
                tensors,
                judge.backbone.folder,
            )
        config.validation_dir.mkdir(parents=True)
        write_json(config.profile_path, {"data_digest": "d" * 64})

    def bundle(self, number: int) -> Path:
        return self.root / str(number) / "bundle"

    def evaluation(self, number: int) -> dict[str, Any]:
        return {**EVALUATION, "bundle_sha256": read_bundle(self.bundle(number)).sha256}

    def config(self, uri: str, model: str) -> RunConfig:
        return build_config({**self.plain, "registry": {"model": model, "tracking_uri": uri}}, "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> World:
    return World(tmp_path_factory.mktemp("registry"), tiny_llama)


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """On sqlite, without accounts."""
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
    """Waits a tenth as long as production."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """On PostgreSQL, with accounts."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    folder = tmp_path_factory.mktemp("guarded")
    with postgres_server(programs) as backend, mlflow_server(folder, backend, accounts=True) as uri:
        yield uri


def test_versions_live_and_change_on_postgresql_behind_accounts(
    world: World, guarded_server: str, account: None
) -> None:
    config = world.config(guarded_server, "guarded")
    first = register_version(config, world.bundle(1), world.evaluation(1))
    second = register_version(config, world.bundle(2), world.evaluation(2))
    client = mlflow_client(config)
    promote(config, client, first, dict(check_version(client, "guarded", first).tags))
    write_verdict(
        config, second, {"version": second, "against": first, "passed": True, "rules": [], "behaviour": []}
    )
    promote(config, client, second, dict(check_version(client, "guarded", second).tags))
    assert client.get_registered_model("guarded").aliases == {
        "champion": second,
        "previous_champion": first,
        "challenger": second,
    }
    verdict = read_verdict(client, check_version(client, "guarded", second))
    assert verdict is not None and verdict["passed"]
    fetched = resolve_champion(config)
    assert read_bundle(fetched.bundle_dir).sha256 == read_bundle(world.bundle(2)).sha256
    assert roll_back(config, client, "complaints")["version"] == first
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


def test_a_wrong_password_is_an_error_of_the_config_and_is_not_told(
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
def test_an_answer_lost_after_the_work_was_done_makes_no_second_version(
    world: World, plain_server: str, request_path: str
) -> None:
    trouble = Trouble()
    with proxy(plain_server, trouble) as uri:
        config = world.config(uri, f"lost-{request_path.replace('/', '-')}")
        trouble.lose_answers_to = request_path
        try:
            version = register_version(config, world.bundle(1), world.evaluation(1))
        except RetryableError:  # the same command again
            version = register_version(config, world.bundle(1), world.evaluation(1))
        assert trouble.lose_answers_to == "", "no answer was lost"
        client = mlflow_client(config)
        found = client.search_model_versions(f"name = '{config.registry.model}'")
        assert [str(one.version) for one in found] == [version]
        assert str(client.get_registered_model(config.registry.model).aliases["challenger"]) == version
        assert register_version(config, world.bundle(1), world.evaluation(1)) == version


@pytest.mark.parametrize(
    ("trouble_is", "told"), [({"status": 500}, "500 error responses"), ({"delay_s": 3.0}, "timed out")]
)
def test_a_server_that_fails_or_is_slow_is_given_up_in_bounded_time(
    world: World, plain_server: str, impatient: None, trouble_is: dict[str, Any], told: str
) -> None:
    trouble = Trouble()
    with proxy(plain_server, trouble) as uri:
        vars(trouble).update(trouble_is)
        started_s = time.monotonic()
        with pytest.raises(RetryableError, match=told):
            register_version(world.config(uri, "slow"), world.bundle(1), world.evaluation(1))
        assert time.monotonic() - started_s < 15


def test_nobody_there_is_told_with_what_to_do(world: World, impatient: None) -> None:
    with pytest.raises(RetryableError, match="does not answer.*see to it or set registry.tracking_uri"):
        mlflow_client(world.config("http://127.0.0.1:9", "absent"))


def test_a_training_goes_on_where_the_store_does_not_answer_from_its_start(
    world: World, impatient: None, capsys: Any
) -> None:
    from jobs.console import Console

    tracker = RunTracker(world.config("http://127.0.0.1:9", "absent"), "f" * 64, "digest", Console().say)
    tracker.log_step(STEP)
    tracker.send()
    tracker.finish("FINISHED")
    said = capsys.readouterr().err
    assert tracker.run_id is None and said.count("Training goes on without it") == 1


def test_a_champion_whose_files_are_here_is_served_while_the_registry_is_down(
    world: World, plain_server: str, impatient: None
) -> None:
    trouble = Trouble()
    with proxy(plain_server, trouble) as uri:
        config = world.config(uri, "down")
        version = register_version(config, world.bundle(2), world.evaluation(2))
        client = mlflow_client(config)
        promote(config, client, version, dict(check_version(client, "down", version).tags))
        trouble.status = 503
        with pytest.raises(RetryableError, match="the champion by the promotion log, is not here yet"):
            resolve_champion(config)
        trouble.status = None
        there = resolve_champion(config)
        trouble.status = 503
        again = resolve_champion(config)
        assert there.registry_away == "" and "does not answer" in again.registry_away
        assert replace(again, registry_away="") == there
        with pytest.raises(RetryableError), told_errors(config):
            fetch_version(config, version)
    assert [record["version"] for record in read_promotions(config)] == [version]
    assert (
        json.loads((config.promotions_dir / "000001.json").read_text())["bundle_sha256"]
        == there.bundle_sha256
    )
