"""`relevance run` on a tiny random Llama with the real Ray, DeepSpeed, MLflow and Great Expectations."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from models.serialization.bundle import read_bundle
from pipeline.encoding.batches import collate
from pipeline.inference.predictor import load_predictor
from pipeline.runtime.run_log import read_log
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import read_errors, read_manifests, read_published
from pipeline.scoring.scoring_record import read_run
from pipeline.storage.object_store import open_store
from tests.golden.results import collect_results
from tests.support.canaries import WORD, files_with_canaries
from tests.support.commands import check_refused, last_json, relevance, relevance_in_process
from tests.support.places import ROOT
from tests.support.planted import planted_rows, write_rows

GOLDEN = ROOT / "tests" / "golden" / "results.json"

pytestmark = pytest.mark.e2e


def test_one_command_turns_rows_into_a_champion_and_labels(finished_run: Any) -> None:
    root, config, finished = finished_run
    result = last_json(finished)
    assert (result["alias"], result["version"]) == ("champion", "1")
    assert (result["units_scored"], result["rows_scored"]) == (4, 24)
    assert result["macro_pr_auc"] > 0.9
    assert result["next"] == f"relevance report --config {config}"
    labels = read_published(Path(result["scores"]), None)
    inputs = ds.dataset(root / "to_score", partitioning="hive").to_table()
    assert sorted(labels["row_id"].to_pylist()) == sorted(inputs["row_id"].to_pylist())
    assert set(labels["model_version"].to_pylist()) == {"1"}


def test_secrets_of_the_environment_are_shown_and_stored_nowhere(finished_run: Any) -> None:
    root, _, finished = finished_run
    assert files_with_canaries(root) == []
    assert WORD not in finished.stdout and WORD not in finished.stderr


def test_files_are_open_to_the_group_alone(finished_run: Any) -> None:
    root, _, finished = finished_run
    states = {path: path.stat() for path in (root / "runs").rglob("*")}
    [log] = (root / "runs" / "planted" / "logs").glob(f"{last_json(finished)['run_id']}.jsonl")
    of_the_run = {path: state for path, state in states.items() if state.st_mtime <= states[log].st_mtime}
    assert len(of_the_run) > 50, "other tests have added files since"
    wrong = {path for path, state in of_the_run.items() if state.st_mode & 0o777 not in (0o640, 0o750)}
    assert wrong == set()


def test_labels_agree_with_the_planted_rows(finished_run: Any) -> None:
    root, _, _ = finished_run
    labels = {row["row_id"]: row for row in read_published(root / "runs" / "planted" / "scores").to_pylist()}
    planted = [row for task in ("two", "three") for part in (10, 11) for row in planted_rows(task, 6, part)]
    agreeing = sum(labels[row["row_id"]]["label"] == row["label"] for row in planted)
    assert agreeing >= 0.9 * len(planted)
    # without best_guess an unproven side abstains
    for row in labels.values():
        assert row["decision_basis"] in ("target_precision", "unproven"), row
        assert row["decision_basis"] == "target_precision" or row["decision"] == "abstain", row


def test_results_equal_those_of_the_golden_run(finished_run: Any) -> None:
    root, _, _ = finished_run
    found, expected = collect_results(root), json.loads(GOLDEN.read_text())
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert found["evaluations"] == pytest.approx(expected["evaluations"], abs=1e-3)
    decisions = {row_id: [label, decision] for row_id, (_, _, label, decision) in found["labels"].items()}
    assert {row_id: decisions[row_id] for row_id in expected["decisions"]} == expected["decisions"]
    assert found["data_gate"]["tasks"] == expected["data_gate"]
    assert found["promotion_log"][0]["version"] == expected["champion"]


def test_terminal_shows_progress_without_library_output(finished_run: Any) -> None:
    root, _, finished = finished_run
    for stage in ("1/7 data", "2/7 validation", "3/7 training", "7/7 scoring"):
        assert stage in finished.stderr
    assert "train 36/36 steps" in finished.stderr
    encoded = re.findall(r"encode 320/320 rows  [\d.]+/s", finished.stderr)
    assert len(encoded) == 1, "evaluation uses the rows that training encoded"
    for noise in ("Warning", "INFO", "deepspeed", "ray::", "Calculating Metrics"):
        assert noise not in finished.stderr and noise not in finished.stdout, noise
    logs = root / "runs" / "planted" / "logs"
    run_id = last_json(finished)["run_id"]
    logged = {line["message"] for line in read_log(logs / f"{run_id}.jsonl")}
    assert {"3/7 training", "7/7 scoring"} <= logged
    assert (logs / f"{run_id}.libraries.log").stat().st_size > 0


def test_announced_parameters_are_those_trained(finished_run: Any) -> None:
    root, _, finished = finished_run
    announced = re.search(
        r"mtl_lora: trainable params: ([\d,]+) \|\| all params: ([\d,]+) \|\| trainable%: ([\d.]+)",
        finished.stderr,
    )
    assert announced is not None, finished.stderr
    trainable, total = (int(number.replace(",", "")) for number in announced.groups()[:2])
    bundle = read_bundle(root / "runs" / "planted" / "bundle")
    assert trainable == bundle.description["training"]["trainable_parameters"]
    assert trainable == sum(tensor.numel() for tensor in bundle.tensors.values())
    assert announced.group(3) == f"{100 * trainable / total:.4f}"
    assert finished.stderr.index("trainable params") < finished.stderr.index("starting 2 workers")


def export(root: Path, config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `relevance export`."""
    return relevance_in_process("export", "--config", str(config), *options, cwd=root)


@pytest.mark.parametrize("export_format", ["peft", "merged"])
def test_export_readme_code_gives_the_champion_logits(finished_run: Any, export_format: str) -> None:
    root, config, _ = finished_run
    options = ("--task", "three", "--format", export_format)
    exported = last_json(export(root, config, *options))
    folder = Path(exported["exported"])
    assert folder == root / "runs" / "planted" / "exports" / "version-1" / f"three-{export_format}"
    predictor, _ = load_predictor(root / "runs" / "planted" / "bundle", exported["bundle_sha256"])
    rows = pa.Table.from_pylist(planted_rows("three", 6, 10, labeled=False), schema=ROW_SCHEMA)
    encoded = predictor.encode({"three": rows})
    batch = collate(encoded, np.arange(6), 2, predictor.pad_id)
    names: dict[str, Any] = {"input_ids": batch.input_ids_BS, "attention_mask": batch.mask_BS}
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), names)
    expected = torch.from_numpy(predictor.logits(encoded, 4096))[:, :3]
    torch.testing.assert_close(names["logits"].detach().double(), expected, rtol=1e-4, atol=1e-4)
    metadata = json.loads((folder / "relevance.json").read_text())
    assert metadata["task"]["labels"] == ["bad", "fair", "good"]
    assert metadata["bundle_sha256"] == exported["bundle_sha256"]
    assert (folder / "tokenizer.json").is_file()
    modified_ns = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    last_json(export(root, config, *options))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == modified_ns, "not repeated"


def test_refused_export_leaves_no_files(finished_run: Any) -> None:
    root, config, _ = finished_run
    (root / "taken").mkdir()
    new = str(root / "new")
    for options, message in (
        (("--task", "two", "--out", str(root / "taken")), "taken exists already; remove it or name another"),
        (("--task", "four", "--out", new), "version 1 has no task 'four'; its tasks: two, three"),
        (("--task", "two", "--version", "9", "--out", new), "version 9 of model planted is not registered"),
    ):
        check_refused(export(root, config, *options), 2, message)
    assert not Path(new).exists() and not list(root.glob("*.tmp"))


def test_second_scoring_of_the_same_rows_scores_nothing(finished_run: Any) -> None:
    root, config, _ = finished_run
    scores = root / "runs" / "planted" / "scores"
    before = read_manifests(scores)
    result = last_json(relevance_in_process("score", "--config", str(config), cwd=root))
    assert (result["units_scored"], result["units_already_published"]) == (0, 4)
    assert read_manifests(scores) == before
    best_guess = ("--set", "scoring.when_unproven=best_guess", "--dry-run")
    listed = last_json(relevance_in_process("score", "--config", str(config), *best_guess, cwd=root))
    assert listed["units_to_score"] == 4, "other decisions are other units"


def test_new_file_is_scored_alone(finished_run: Any) -> None:
    root, config, _ = finished_run
    new = root / "to_score" / "task=two" / "part-new.parquet"
    write_rows(planted_rows("two", 4, 99, labeled=False), new)
    result = last_json(relevance("score", "--config", str(config), cwd=root))
    assert (result["units_scored"], result["rows_scored"], result["units_already_published"]) == (1, 4, 4)


def test_all_tasks_scoring_labels_each_row_for_every_task_once(finished_run: Any) -> None:
    root, config, _ = finished_run
    for task, num_rows, seed in (("three", 4, 60), ("two", 2, 61)):
        path = root / "any_task" / f"task={task}" / "part-0.parquet"
        write_rows(planted_rows(task, num_rows, seed, labeled=False), path)
    scores = root / "scores-of-all"
    locations = ("--set", f"data.to_score={root / 'any_task'}", "--set", f"scoring.scores={scores}")
    one_task = ("score", "--config", str(config), *locations)
    all_tasks = (*one_task, "--all-tasks")
    listed = last_json(relevance_in_process(*all_tasks, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["rows_to_score"], listed["estimated_s"]) == (2, 6, None)
    result = last_json(relevance(*all_tasks, cwd=root))
    counts = [result[name] for name in ("units_scored", "rows_scored", "rows_in", "labels", "errors")]
    assert counts == [2, 6, 6, 12, 0]
    labels = read_published(scores)
    row_ids = (*(f"three-60-{number}" for number in range(4)), "two-61-0", "two-61-1")
    assert set(zip(labels["row_id"].to_pylist(), labels["task"].to_pylist(), strict=True)) == {
        (row_id, task) for task in ("two", "three") for row_id in row_ids
    }
    again = last_json(relevance_in_process(*all_tasks, cwd=root))
    assert (again["units_scored"], again["units_already_published"]) == (0, 2)
    listed = last_json(relevance_in_process(*all_tasks, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["estimated_s"]) == (0, 0), "the rate is known"
    listed = last_json(relevance_in_process(*one_task, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["estimated_s"]) == (2, None), "the rate of one task is not"


@pytest.mark.failures
def test_each_day_of_a_bucket_is_scored_as_a_run(finished_run: Any, s3: str) -> None:
    root, config, _ = finished_run
    bucket = open_store("s3://labels/daily")
    for seed, day in ((70, "2026-01-31"), (71, "2026-02-01")):
        rows = planted_rows("two", 4, seed, labeled=False)
        rows[3]["ad_title"] = " "
        write_rows(rows, root / "upload.parquet")
        bucket.put(f"{day}/task=two/part-0.parquet", (root / "upload.parquet").read_bytes())
    days = ("--logical-date", "2026-01-31", "--until", "2026-02-01")
    command = ("score", "--config", str(config), *days, "--set", "data.to_score=s3://labels/daily/{date}")
    wrong = relevance_in_process(*command, "--set", "scoring.scores=s3://nowhere/x", "--dry-run", cwd=root)
    check_refused(wrong, 2, "bucket does not exist: s3://nowhere/x; create it")
    scores = "s3://labels/scores"
    command = (*command, "--set", f"scoring.scores={scores}")
    listed = last_json(relevance_in_process(*command, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["rows_to_score"], listed["estimated_s"]) == (2, 8, None)
    result = last_json(relevance(*command, cwd=root))
    assert result["scores"] == scores
    assert [result[name] for name in ("units_scored", "rows_in", "labels", "errors")] == [2, 8, 6, 2]
    dates = {
        day: json.loads(open_store(scores).get(path.removeprefix(f"{scores}/")))["logical_date"]
        for day, path in result["dates"].items()
    }
    assert dates == {"2026-01-31": "2026-01-31", "2026-02-01": "2026-02-01"}
    assert sorted(read_run(scores).column("row_id").to_pylist()) == ["two-71-0", "two-71-1", "two-71-2"]
    assert set(read_errors(scores).column("row_id").to_pylist()) == {"two-70-3", "two-71-3"}


def test_equal_training_is_not_repeated(finished_run: Any) -> None:
    root, config, _ = finished_run
    manifest = root / "runs" / "planted" / "trained" / "manifest.json"
    before = manifest.read_bytes()
    assert last_json(relevance_in_process("train", "--config", str(config), cwd=root))["steps"] == 0
    assert manifest.read_bytes() == before


def test_registering_an_equal_bundle_makes_no_second_version(finished_run: Any) -> None:
    root, config, _ = finished_run
    assert last_json(relevance_in_process("register", "--config", str(config), cwd=root))["version"] == "1"


def test_later_rows_are_compared_with_the_champion_profile(finished_run: Any) -> None:
    root, config, _ = finished_run
    result = relevance_in_process(
        "validate", "--config", str(config), "--set", "gate.reference_profile=champion", cwd=root
    )
    last_json(result)
    assert "compared with the data of version 1, the champion" in result.stderr
    validation = root / "runs" / "planted" / "validation"
    (carried,) = (root / "runs" / "planted" / "served").glob("version-1-*/data/artifacts/profile.json")
    assert carried.read_bytes() == (validation / "profile.json").read_bytes()
    features = json.loads((validation / "drift.json").read_text())["features"]
    assert features and all(feature["verdict"] == "steady" for feature in features)


def test_mlflow_has_the_losses_metrics_and_digests(finished_run: Any) -> None:
    import mlflow

    _, _, finished = finished_run
    result = last_json(finished)
    client = mlflow.MlflowClient(result["tracking_uri"], registry_uri=result["tracking_uri"])
    groups = [f"gradient_norm_{name}" for name in ("projections", "transforms", "mixtures", "heads")]
    for name in ("loss", "loss_two", "loss_three", "learning_rate", "rows_per_s", "gradient_norm", *groups):
        assert len(client.get_metric_history(result["mlflow_run"], name)) == result["steps"], name
    run = client.get_run(result["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert {"test_pr_auc_two", "test_macro_pr_auc_model"} <= run.data.metrics.keys()
    version = client.get_model_version_by_alias("planted", "champion")
    assert version.tags["data_digest"] == result["data_digest"]
    assert version.tags["bundle_sha256"]


def test_champion_predicts_without_pickle_or_code_of_its_folder(finished_run: Any) -> None:
    root, _, finished = finished_run
    names = ("pipeline", "data/artifacts", "data/artifacts/pipeline", "code")
    models = [path.parent for path in (root / "runs" / "planted" / "mlartifacts").rglob("MLmodel")]
    planted = [model / name for model in models for name in names]
    assert planted
    for folder in planted:
        folder.mkdir(exist_ok=True)
        for name in ("__init__.py", "pyfunc_code.py", "pyfunc_model.py", "sitecustomize.py", "conftest.py"):
            (folder / name).write_text(f"open({str(root / 'planted-code-ran')!r}, 'w').close()\n")
    code = (
        "import sys\n"
        "unpickled = []\n"
        "sys.addaudithook(lambda event, names: event == 'pickle.find_class' and unpickled.append(names))\n"
        "import mlflow, pandas as pd\n"
        "from pipeline.registry.served_version import load_served_model\n"
        f"mlflow.set_tracking_uri({last_json(finished)['tracking_uri']!r})\n"
        "model = load_served_model('models:/planted@champion')\n"
        "frame = pd.DataFrame({'task': ['three', 'two'], 'query': ['red lamp', 'red lamp'], "
        "'ad_title': ['blue shoes north', 'blue shoes south']})\n"
        "out = model.predict(frame)\n"
        "print(out.columns.tolist(), out['label'].tolist())\n"
        "try:\n"
        "    model.predict(frame.assign(task='four'))\n"
        "except Exception as error:\n"
        "    print('four' in str(error) and 'two' in str(error))\n"
        "print(unpickled)\n"
    )
    environment = {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
        "HOME": str(root),
    }
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=200
    )
    assert shown.returncode == 0, shown.stderr
    columns, names_the_tasks, unpickled = shown.stdout.splitlines()[-3:]
    assert columns == "['probability', 'label', 'label_name', 'expected_grade', 'decision'] [0, 1]"
    assert names_the_tasks == "True"
    assert unpickled == "[]"
    assert not (root / "planted-code-ran").exists()
    for path in (path for folder in planted for path in folder.glob("*.py")):
        path.unlink()


def test_model_below_the_lexical_floor_stays_challenger(finished_run: Any) -> None:
    root, config, _ = finished_run
    evaluation_path = root / "runs" / "planted" / "evaluation.json"
    recorded = evaluation_path.read_text()
    worse = json.loads(recorded)
    worse["macro_pr_auc"]["model"]["value"] = worse["macro_pr_auc"]["lexical"]["value"] - 0.01
    # a model of its own, because the bundle has a version in the other one
    options = ("--config", str(config), "--set", "registry.model=below")
    try:
        evaluation_path.write_text(json.dumps(worse))
        version = last_json(relevance_in_process("register", *options, cwd=root))["version"]
        refused = relevance_in_process("promote", *options, "--version", version, cwd=root)
    finally:
        evaluation_path.write_text(recorded)
    check_refused(refused, 1, "lexical floor", "stays challenger")
