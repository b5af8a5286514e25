"""Commands on versions and champions, with a store in the run folder."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.commands.versions import check_not_rolled_back
from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.loading import read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError
from pipeline.evaluation.results import Evaluation
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.model_versions import get_version, read_gate_report, register_version
from pipeline.registry.promotion_log import PromotionLog
from pipeline.storage.filesystem import read_json
from tests.support.commands import last_json, relevance_in_process

pytestmark = pytest.mark.e2e

TOLERANT = [
    "--set",
    "promotion.tolerances={forged tokens: 1.0, injected order: 1.0, upper case: 1.0, word order: 1.0}",
]

CARD_HEADINGS = (
    "## Use",
    "## Data",
    "## Metrics on the test split",
    "## Calibration and decisions",
    "## Limits",
    "## Worst slices",
)


class World:
    """A run whose version 1 is champion, with two more versions: 2 equals it, 3 has negated heads."""

    def __init__(self, root: Path, config_path: Path) -> None:
        self.root, self.config_path = root, config_path
        self.config: RunConfig = read_config(config_path)
        self.add_version("equal", lambda name, tensor: tensor * (1 + 1e-4))
        self.add_version("negated", lambda name, tensor: -tensor if "heads" in name else tensor)

    def add_version(self, name: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        """Register a changed copy of the run's bundle with the run's evaluation."""
        bundle = read_bundle(self.config.run_dir / "bundle")
        folder = self.root / name / "bundle"  # MLflow keeps the name of the folder
        folder.parent.mkdir()
        tensors = {key: change(key, torch.as_tensor(tensor)) for key, tensor in bundle.tensors.items()}
        sha256 = write_bundle(folder, bundle.description, tensors, bundle.tokenizer_dir, bundle.reference)
        evaluation = Evaluation.from_json(read_json(self.config.run_dir / "evaluation.json"))
        with pytest.raises(ConfigError, match="evaluation is of another bundle"):
            register_version(self.config, folder, evaluation)
        register_version(self.config, folder, replace(evaluation, bundle_sha256=sha256))

    def relevance(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the config of the run."""
        return relevance_in_process(command, *arguments, "--config", str(self.config_path), cwd=self.root)


@pytest.fixture(scope="module")
def world(finished_run: Any) -> World:
    root, config_path, finished = finished_run
    assert finished.returncode == 0, finished.stderr
    return World(root, config_path)


def test_equal_version_is_refused_by_gate_and_promotion(world: World) -> None:
    refused = world.relevance("evaluate", "--version", "2", "--against", "champion")
    assert refused.returncode == 1, refused.stderr
    assert "REFUSED  better on macro PR-AUC" in refused.stdout
    assert "passed   non-inferior on every task" in refused.stdout
    assert "version 2 refused: it may not replace version 1: better on macro PR-AUC" in refused.stderr
    refused = world.relevance("promote", "--version", "2")
    assert refused.returncode == 1 and "did not pass the gate against version 1" in refused.stderr


def test_version_with_negated_heads_is_refused_on_every_task(world: World) -> None:
    refused = world.relevance("evaluate", "--version", "3", *TOLERANT)
    assert refused.returncode == 1, refused.stderr
    line = next(line for line in refused.stdout.splitlines() if "non-inferior on every task" in line)
    assert "REFUSED" in line and "two -0." in line and "three -0." in line


def test_accepted_version_is_promoted_and_rolled_back(world: World) -> None:
    # the speed of two equal versions differs on a loaded machine
    margins = ("--set", "promotion.min_macro_gain=-0.01", "--set", "promotion.min_speed_ratio=0.01")
    passed = last_json(world.relevance("evaluate", "--version", "2", *margins, *TOLERANT))
    assert passed["passed"] is True and " promote " in passed["next"] and "--version 2" in passed["next"]
    promoted = last_json(world.relevance("promote", "--version", "2"))
    assert promoted["promotion"] == 2
    assert promoted["next"] == f"relevance score --config {world.config_path}"
    client = connect_mlflow(world.config.tracking_uri)
    aliases = {alias: str(number) for alias, number in client.get_registered_model("planted").aliases.items()}
    assert aliases == {"champion": "2", "previous_champion": "1", "challenger": "3"}
    assert last_json(world.relevance("rollback", "--reason", "complaints"))["version"] == "1"
    assert "previous_champion" not in client.get_registered_model("planted").aliases
    with pytest.raises(GateRefusedError, match="was rolled back on .*complaints"):
        check_not_rolled_back(world.config, "2")
    again = world.relevance("rollback", "--reason", "more complaints")
    assert again.returncode == 2 and "has no earlier champion" in again.stderr


def test_history_shows_overrides_and_rollbacks_with_reasons(world: World) -> None:
    last_json(world.relevance("promote", "--version", "3", "--override", "--reason", "a drill"))
    last_json(world.relevance("rollback", "--reason", "the drill is over"))
    history = world.relevance("history")
    rows = history.stdout.splitlines()[1:-1]
    assert [row.split()[3:5] for row in rows] == [
        ["promotion", "1"],
        ["promotion", "2"],
        ["rollback", "1"],
        ["promotion", "3"],
        ["rollback", "1"],
    ]
    assert [row.rpartition("  ")[2] for row in rows] == [
        "beat the lexical floor",
        "passed the gate",
        "complaints",
        "a drill",
        "the drill is over",
    ]
    assert len(last_json(history)["promotions"]) == 5


def test_verified_history_prints_each_check(world: World) -> None:
    verified = world.relevance("history", "--verify")
    checks = {"entries": "ok", "version tags": "ok", "bundle digests": "ok", "aliases": "ok"}
    assert last_json(verified)["checks"] == checks
    assert [line.split() for line in verified.stdout.splitlines()[1:3]] == [
        ["entries", "ok"],
        ["version", "tags", "ok"],
    ]
    entry = world.config.promotions_dir / "000005.json"
    kept = entry.read_bytes()
    entry.unlink()
    refused = world.relevance("history", "--verify")
    entry.write_bytes(kept)
    assert refused.returncode == 4 and "promotion log of planted is broken: version tags;" in refused.stderr
    assert "lacks the entry that the tag promotion of version 1" in refused.stdout


def test_two_versions_are_compared_on_the_same_rows(world: World) -> None:
    compared = last_json(world.relevance("compare", "1", "3"))
    assert compared["macro_pr_auc_difference"]["low"] > 0.1
    two = compared["tasks"]["two"]
    assert two["challenger"]["pr_auc"]["value"] > two["champion"]["pr_auc"]["value"]
    assert compared["speed_ratio"] > 0 and compared["not_compared"] == []
    page = Path(compared["report"])
    assert page.name == "version-1-against-3.html" and "beside version 3</title>" in page.read_text()
    assert Path(compared["suspected_labels"]).is_file()
    unknown = world.relevance("compare", "1", "9")
    assert unknown.returncode == 2 and "version 9 of model planted is not registered" in unknown.stderr


def test_report_is_one_page_and_an_mlflow_artifact(world: World) -> None:
    written = last_json(world.relevance("report", "--version", "3"))
    page = Path(written["report"]).read_text()
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "refused by the gate" in shown and "challenger, compared with version 1 (champion)" in shown
    assert '<g class="floor">' in page, "the run recorded the lexical floor of these rows"
    assert "speed of version 1" in shown and "trained numbers" in shown
    without_namespaces = re.sub(r' xmlns(:xlink)?="[^"]*"', "", page)
    assert not re.findall(r"https?://|src=", without_namespaces), "the page loads nothing from elsewhere"
    assert Path(written["suspected_labels"]).read_text().startswith("row_id,task,query,ad_title,")
    client = connect_mlflow(world.config.tracking_uri)
    run_id = get_version(client, "planted", "3").run_id
    names = {"reports/version-3.html", "reports/version-3-suspected-labels.csv"}
    assert names <= {file.path for file in client.list_artifacts(run_id, "reports")}


def test_version_is_not_tested_on_its_training_rows(world: World) -> None:
    refused = world.relevance("compare", "1", "2", "--set", "split.test_share=0.4")
    assert refused.returncode == 2
    assert "was trained with split.test_share 0.25, the config has 0.4" in refused.stderr


def test_refused_version_with_an_altered_gate_tag_is_not_promoted(world: World) -> None:
    client = connect_mlflow(world.config.tracking_uri)
    tag = get_version(client, "planted", "3").tags["gate"]
    client.set_model_version_tag("planted", "3", "gate", tag.replace('"passed":false', '"passed":true'))
    try:
        refused = world.relevance("promote", "--version", "3")
    finally:
        client.set_model_version_tag("planted", "3", "gate", tag)
    assert refused.returncode == 4
    assert "gate report or tag was altered" in refused.stderr


def test_altered_gate_report_is_damaged_input(world: World) -> None:
    client = connect_mlflow(world.config.tracking_uri)
    record = get_version(client, "planted", "3")
    report = read_gate_report(record)
    assert report is not None and not report.verdict.passed
    altered = json.dumps({**report.to_json(), "passed": True})
    for text in (altered, altered[:40]):
        client.log_text(record.run_id, text, "gate/version-3-against-1.json")
        with pytest.raises(DamagedInputError, match="gate report or tag was altered"):
            read_gate_report(record)


def test_version_carries_its_digests_and_model_card(world: World) -> None:
    record = get_version(connect_mlflow(world.config.tracking_uri), "planted", "1")
    digests = {"bundle_sha256", "data_digest", "fingerprint", "backbone_digest", "macro_pr_auc"}
    assert record.tags.keys() >= digests
    assert record.tags["data_gate"] == "passed"
    assert (world.config.run_dir / "records" / f"{record.tags['relevance_run_id']}.json").is_file()
    assert record.tags["code_version"].startswith(version("ads-relevance"))
    assert [heading for heading in CARD_HEADINGS if heading not in record.description] == []


def test_lost_log_stops_commands_until_a_new_one_begins(world: World, tmp_path: Path) -> None:
    elsewhere = ("--set", f"registry.promotions={tmp_path / 'not mounted'}")
    pair = ("--task", "two", "--query", "q", "--ad-title", "t")
    promote = ("promote", "--version", "2")
    override = ("--override", "--reason", "the volume was lost")
    commands = {
        4: [
            promote,
            (*promote, *override),
            ("rollback", "--reason", "r"),
            ("predict", *pair),
            ("export", *pair[:2]),
        ],
        2: [(*promote, "--begin-log")],
    }
    for code, refused_commands in commands.items():
        for command in refused_commands:
            refused = world.relevance(*command, *elsewhere)
            assert refused.returncode == code, (command, refused.stderr)
            assert code == 2 or "relevance promote --begin-log" in refused.stderr.splitlines()[-1]
    try:
        begun = last_json(world.relevance(*promote, "--begin-log", *override, *elsewhere))
        assert (begun["version"], begun["promotion"]) == ("2", 1)
        history = last_json(world.relevance("history", "--verify", *elsewhere))
        assert [entry["override"] for entry in history["promotions"]] == ["the volume was lost"]
    finally:  # other files of tests use the run
        client = connect_mlflow(world.config.tracking_uri)
        client.delete_model_version_tag("planted", "2", "promotion")
        client.delete_registered_model_alias("planted", "champion")
        PromotionLog.from_config(world.config).repair_registry(client)
