"""Versions and champions, by the commands a user types, on a store of the embedded kind."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.commands.versions import check_not_left
from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.loading import read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError
from pipeline.registry.mlflow_client import mlflow_client
from pipeline.registry.model_versions import check_version, read_verdict, register_version
from tests.support.commands import last_json, relevance_in_process

pytestmark = pytest.mark.e2e

TOLERANT = [
    "--set",
    "promotion.tolerances={forged tokens: 1.0, injected order: 1.0, upper case: 1.0, word order: 1.0}",
]


class World:
    """A run whose version 1 is champion, and two more versions of it: 2 is as good, 3 has its heads turned
    round.
    """

    def __init__(self, root: Path, config_path: Path) -> None:
        self.root, self.config_path = root, config_path
        self.config: RunConfig = read_config(config_path, [])
        self.add_version("moved", lambda name, tensor: tensor * (1 + 1e-4))
        self.add_version("turned", lambda name, tensor: -tensor if "heads" in name else tensor)

    def add_version(self, name: str, change: Any) -> str:
        bundle = read_bundle(self.config.run_dir / "bundle")
        folder = self.root / name / "bundle"  # MLflow keeps a folder by its own name
        folder.parent.mkdir()
        tensors = {key: change(key, torch.as_tensor(tensor)) for key, tensor in bundle.tensors.items()}
        write_bundle(folder, bundle.description, tensors, bundle.tokenizer_dir)
        evaluation = json.loads((self.config.run_dir / "evaluation.json").read_text())
        with pytest.raises(ConfigError, match="the figures are of another bundle"):
            register_version(self.config, folder, evaluation)
        return register_version(
            self.config, folder, {**evaluation, "bundle_sha256": read_bundle(folder).sha256}
        )

    def relevance(self, command: str, *arguments: str) -> Any:
        return relevance_in_process(command, *arguments, "--config", str(self.config_path), cwd=self.root)


@pytest.fixture(scope="module")
def world(finished_run: Any) -> World:
    root, config_path, finished = finished_run
    assert finished.returncode == 0, finished.stderr
    return World(root, config_path)


def test_a_version_that_gains_nothing_is_refused_with_reasons_and_its_promotion_too(world: World) -> None:
    refused = world.relevance("evaluate", "--version", "2", "--against", "champion")
    assert refused.returncode == 1, refused.stderr
    assert (
        "REFUSED  better on macro PR-AUC" in refused.stdout
        and "passed   non-inferior on every task" in refused.stdout
    )
    assert "version 2 may not take the place of version 1: better on macro PR-AUC" in refused.stderr
    refused = world.relevance("promote", "--version", "2")
    assert refused.returncode == 1 and "did not pass the gate against version 1" in refused.stderr


def test_a_version_that_lost_its_way_is_refused_by_every_task(world: World) -> None:
    refused = world.relevance("evaluate", "--version", "3", *TOLERANT)
    assert refused.returncode == 1, refused.stderr
    line = next(line for line in refused.stdout.splitlines() if "non-inferior on every task" in line)
    assert "REFUSED" in line and "two -0." in line and "three -0." in line


def test_a_gate_that_asks_for_less_lets_it_pass_and_rollback_undoes_the_promotion(world: World) -> None:
    passed = world.relevance(
        "evaluate", "--version", "2", "--set", "promotion.min_macro_gain=-0.01", *TOLERANT
    )
    assert last_json(passed)["passed"] is True
    assert last_json(world.relevance("promote", "--version", "2"))["promotion"] == 2
    client = mlflow_client(world.config)
    aliases = {
        alias: str(version) for alias, version in client.get_registered_model("planted").aliases.items()
    }
    assert (aliases["champion"], aliases["previous_champion"], aliases["challenger"]) == ("2", "1", "3")
    assert last_json(world.relevance("rollback", "--reason", "complaints"))["version"] == "1"
    assert "previous_champion" not in client.get_registered_model("planted").aliases
    with pytest.raises(GateRefusedError, match="was rolled back from on .*complaints"):
        check_not_left(world.config, "2")
    again = world.relevance("rollback", "--reason", "more complaints")
    assert again.returncode == 2 and "no earlier champion to go back to" in again.stderr


def test_an_override_needs_a_reason_and_history_tells_it(world: World) -> None:
    assert world.relevance("promote", "--version", "3", "--override").returncode == 2
    last_json(world.relevance("promote", "--version", "3", "--override", "--reason", "a drill"))
    last_json(world.relevance("rollback", "--reason", "the drill is over"))
    told = world.relevance("history")
    rows = told.stdout.splitlines()[1:-1]
    assert [row.split()[3:5] for row in rows] == [
        ["promotion", "1"],
        ["promotion", "2"],
        ["rollback", "1"],
        ["promotion", "3"],
        ["rollback", "1"],
    ]
    assert [row.rpartition("  ")[2] for row in rows[2:]] == ["complaints", "a drill", "the drill is over"]
    assert len(last_json(told)["promotions"]) == 5


def test_two_versions_are_compared_on_the_same_rows(world: World) -> None:
    compared = last_json(world.relevance("compare", "1", "3"))
    assert compared["macro_pr_auc_difference"]["low"] > 0.1
    assert (
        compared["tasks"]["two"]["challenger"]["pr_auc"]["value"]
        > compared["tasks"]["two"]["champion"]["pr_auc"]["value"]
    )
    unknown = world.relevance("compare", "1", "9")
    assert unknown.returncode == 2 and "version 9 of model planted is not registered" in unknown.stderr


def test_the_report_of_a_version_is_one_page_with_its_verdict_and_is_logged(world: World) -> None:
    path = Path(last_json(world.relevance("report", "--version", "3"))["report"])
    page = path.read_text()
    assert "Refused by the gate</b> against version 1" in page and "It is <b>challenger</b> now" in page
    assert page.count("<svg") >= 6 and "steady" not in page
    for outside in ("http://", "https://", "src="):
        assert outside not in page, outside
    client = mlflow_client(world.config)
    run_id = check_version(client, "planted", "3").run_id
    assert "reports/version-3.html" in {file.path for file in client.list_artifacts(run_id, "reports")}


def test_rows_that_a_version_may_have_been_trained_on_are_not_its_test(world: World) -> None:
    refused = world.relevance("compare", "1", "2", "--set", "split.test_share=0.4")
    assert (
        refused.returncode == 2
        and "was trained with split.test_share 0.25, the config has 0.4" in refused.stderr
    )


def test_a_version_to_compare_with_needs_one_to_compare(world: World) -> None:
    assert world.relevance("evaluate", "--against", "1").returncode == 2


def test_a_verdict_that_was_altered_in_the_store_is_not_believed(world: World) -> None:
    client = mlflow_client(world.config)
    record = check_version(client, "planted", "3")
    verdict = read_verdict(client, record)
    assert verdict is not None and verdict["passed"] is False
    client.log_text(record.run_id, json.dumps({**verdict, "passed": True}), "gate/version-3-against-1.json")
    with pytest.raises(DamagedInputError, match="is not what the gate wrote"):
        read_verdict(client, record)


def test_a_version_carries_what_it_is_made_of(world: World) -> None:
    record = check_version(mlflow_client(world.config), "planted", "1")
    assert record.tags.keys() >= {
        "bundle_sha256",
        "data_digest",
        "fingerprint",
        "backbone_digest",
        "macro_pr_auc",
    }
    assert record.tags["data_gate"] == "passed" and record.tags["code_version"].startswith(
        version("ads-relevance")
    )
    for heading in (
        "## Use",
        "## Data",
        "## Figures on the test split",
        "## Calibration and decisions",
        "## Limits",
        "## Worst slices",
    ):
        assert heading in record.description, heading
