"""`relevance predict` and `relevance recalibrate` on a finished run, and what they record."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.extensions import BEHAVIORAL_TESTS, load_behavioral_tests
from pipeline.runtime.run_record import read_all_records
from pipeline.scoring.label_store import read_published
from tests.support.commands import last_json, relevance_in_process

pytestmark = pytest.mark.e2e

PAIR = ("--query", "red shoes phone 0", "--ad-title", "lamp chair dress north")


def test_a_prediction_shows_text_probability_and_decision(finished_run: Any) -> None:
    root, config, _ = finished_run
    result = relevance_in_process("predict", "--config", str(config), "--task", "two", *PAIR, cwd=root)
    prediction = last_json(result)
    assert "Query: red shoes phone 0\nAd: lamp chair dress north" in prediction["text"]
    assert 0 <= prediction["probability"] <= 1 and prediction["version"] == "1"
    assert prediction["decision"] in ("relevant", "irrelevant", "abstain")
    assert prediction["text"] in result.stdout and prediction["decision"] in result.stdout


def test_a_prediction_is_the_published_label_of_the_same_texts(finished_run: Any) -> None:
    root, config, finished = finished_run
    label = read_published(Path(last_json(finished)["scores"])).to_pylist()[0]
    rows = (root / "to_score").rglob("*.parquet")
    import pyarrow.parquet as pq

    (row,) = [
        row
        for path in rows
        for row in pq.ParquetFile(path).read().to_pylist()
        if row["row_id"] == label["row_id"]
    ]
    texts = ("--query", row["query"], "--ad-title", row["ad_title"], "--market", row["market"])
    prediction = last_json(
        relevance_in_process("predict", "--config", str(config), "--task", label["task"], *texts, cwd=root)
    )
    assert prediction["probability"] == pytest.approx(label["probability"], abs=1e-4)
    assert prediction["decision"] == label["decision"]
    assert prediction["decision_basis"] == label["decision_basis"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "four", *PAIR), "has no task 'four'; its tasks: two, three"),
        (("--task", "two", "--query", "", "--ad-title", "x"), "pair not valid"),
    ],
)
def test_wrong_pairs_are_refused_with_a_reason(
    finished_run: Any, arguments: tuple[str, ...], message: str
) -> None:
    root, config, _ = finished_run
    result = relevance_in_process("predict", "--config", str(config), *arguments, cwd=root)
    assert result.returncode == 2 and message in result.stderr


def test_recalibration_registers_a_gated_version_without_training(finished_run: Any, tmp_path: Path) -> None:
    root, config_path, _ = finished_run
    shutil.copytree(root / "runs", tmp_path / "runs")
    config = yaml.safe_load(config_path.read_text())
    config["work_dir"] = str(tmp_path / "runs")
    config["registry"]["tracking_uri"] = f"sqlite:///{tmp_path}/runs/planted/mlflow.db"
    load_behavioral_tests()
    tolerances = {name: 1.0 for name in BEHAVIORAL_TESTS.names()}
    limits = {"min_macro_gain": -1.0, "min_speed_ratio": 0.01, "calibration_margin": 1.0}
    config["promotion"] = {**limits, "tolerances": tolerances}
    copy = tmp_path / "c.yaml"
    copy.write_text(yaml.safe_dump(config))
    weights = (tmp_path / "runs" / "planted" / "bundle" / "weights.safetensors").read_bytes()
    result = last_json(
        relevance_in_process("recalibrate", "--config", str(copy), "--target-precision", "0.6", cwd=tmp_path)
    )
    version = result["version"]  # 2, unless another test has registered one in the shared run
    assert (result["calibrated_from"], result["alias"]) == ("1", "challenger") and version != "1"
    assert result["next"].startswith("relevance promote")
    assert result["next"].endswith(f"--version {version}")
    bundle = tmp_path / "runs" / "planted" / "bundle"
    assert (bundle / "weights.safetensors").read_bytes() == weights
    tasks = json.loads((bundle / "bundle.json").read_text())["tasks"]
    assert [task["target_precision"] for task in tasks] == [0.6, 0.6]
    evidence = json.loads((tmp_path / "runs" / "planted" / "evaluation.json").read_text())["decisions"]
    assert evidence["two"]["target"] == 0.6


def test_a_target_outside_its_range_is_a_config_error(finished_run: Any) -> None:
    root, config, _ = finished_run
    result = relevance_in_process(
        "recalibrate", "--config", str(config), "--target-precision", "1.5", cwd=root
    )
    assert result.returncode == 2 and "--target-precision not valid: 1.5" in result.stderr


def test_the_whole_run_is_recorded_with_its_workers_log(finished_run: Any) -> None:
    root, _, finished = finished_run
    result = last_json(finished)
    (record,) = [record for record in read_all_records(root / "runs") if record.run_id == result["run_id"]]
    assert (record.command, record.state, record.exit_code) == ("run", "done", 0)
    assert record.counts["units_done"] == record.counts["units"] == 4
    log = [json.loads(line) for line in Path(record.log).read_text().splitlines()]
    processes = {line["process"].split()[0] for line in log}
    assert processes >= {"command", "rank", "actor"}
    assert {line["run_id"] for line in log} == {result["run_id"]}
    units = {line["work_unit"] for line in log if line["process"].startswith("actor")} - {None}
    assert len(units) == 4, "every published unit is in the log"
    messages = [line["message"] for line in log if line["process"] == "command"]
    for line in finished.stderr.splitlines():
        assert any(line.strip() in message for message in messages), line


def test_a_finished_run_is_shown_by_its_id(finished_run: Any) -> None:
    root, _, finished = finished_run
    run_id = last_json(finished)["run_id"]
    result = relevance_in_process("runs", run_id, "--work-dir", str(root / "runs"), cwd=root)
    assert result.stdout.startswith("run done at 4 of 4 units")
    assert last_json(result)["next"] == f"relevance report --config {root / 'planted.yaml'}"
