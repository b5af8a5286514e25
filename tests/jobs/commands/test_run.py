"""The whole path on a tiny random Llama, by the command a user types: Ray, DeepSpeed, MLflow and Great
Expectations are the real ones.
"""

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
from pipeline.inference.predictor import load_judge
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import read_errors, read_manifests, read_published, read_run
from pipeline.storage.object_store import open_store
from tests.golden.results import collect_results
from tests.support.commands import last_json, relevance, relevance_in_process
from tests.support.places import ROOT
from tests.support.planted import planted_rows, write_rows

GOLDEN = ROOT / "tests" / "golden" / "results.json"
pytestmark = pytest.mark.e2e


def test_one_command_walks_from_parquet_to_promoted_version_to_labels(finished_run: Any) -> None:
    root, _, finished = finished_run
    result = last_json(finished)
    assert (result["alias"], result["version"], result["rows_scored"], result["units_scored"]) == (
        "champion",
        "1",
        24,
        4,
    )
    assert result["macro_pr_auc"] > 0.9
    labels = read_published(Path(result["scores"]), None)
    inputs = ds.dataset(root / "to_score", partitioning="hive").to_table()
    assert sorted(labels["row_id"].to_pylist()) == sorted(inputs["row_id"].to_pylist())
    assert set(labels["model_version"].to_pylist()) == {"1"}


def test_labels_say_what_the_rows_were_planted_to_say(finished_run: Any) -> None:
    root, _, _ = finished_run
    labels = {
        row["row_id"]: row["label"]
        for row in read_published(root / "runs" / "planted" / "scores").to_pylist()
    }
    truth = {
        row["row_id"]: row["label"]
        for task in ("two", "three")
        for part in (10, 11)
        for row in planted_rows(task, 6, part)
    }
    agreeing = sum(labels[row_id] == label for row_id, label in truth.items())
    assert agreeing >= 0.9 * len(truth)


def test_results_are_those_of_the_golden_run(finished_run: Any) -> None:
    root, _, _ = finished_run
    found, expected = collect_results(root), json.loads(GOLDEN.read_text())
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert found["evaluations"] == pytest.approx(expected["evaluations"], abs=1e-3)
    decisions = {row_id: [label, decision] for row_id, (_, _, label, decision) in found["labels"].items()}
    assert {row_id: decisions[row_id] for row_id in expected["decisions"]} == expected["decisions"]
    assert found["data_gate"]["tasks"] == expected["data_gate"]
    assert found["promotion_log"][0]["version"] == expected["champion"]


def test_people_see_progress_and_libraries_are_not_heard(finished_run: Any) -> None:
    _, _, finished = finished_run
    assert "train 60/60 steps" in finished.stderr or "steps" in finished.stderr
    encoded = re.findall(r"encode 320/320 rows  [\d.]+/s", finished.stderr)
    assert len(encoded) == 1, finished.stderr  # evaluation reads what training encoded
    for noise in ("Warning", "INFO", "deepspeed", "ray::", "Calculating Metrics"):
        assert noise not in finished.stderr and noise not in finished.stdout, noise


def test_the_parameters_told_before_training_are_those_trained(finished_run: Any) -> None:
    root, _, finished = finished_run
    told = re.search(
        r"mtl_lora: trainable params: ([\d,]+) \|\| all params: ([\d,]+) \|\| trainable%: ([\d.]+)",
        finished.stderr,
    )
    assert told is not None, finished.stderr
    trainable, total = (int(number.replace(",", "")) for number in told.groups()[:2])
    bundle = read_bundle(root / "runs" / "planted" / "bundle")
    assert (
        trainable
        == bundle.description["training"]["trainable_parameters"]
        == sum(tensor.numel() for tensor in bundle.tensors.values())
    )
    assert told.group(3) == f"{100 * trainable / total:.4f}"
    assert finished.stderr.index("trainable params") < finished.stderr.index("starting 2 workers")


@pytest.mark.parametrize("export_format", ("peft", "merged"))
def test_an_exported_task_gives_the_champion_s_logits_by_the_lines_of_its_readme(
    finished_run: Any, export_format: str
) -> None:
    root, config, _ = finished_run
    exported = last_json(
        relevance_in_process(
            "export", "--config", str(config), "--task", "three", "--format", export_format, cwd=root
        )
    )
    folder = Path(exported["exported"])
    assert folder == root / "runs" / "planted" / "exports" / "version-1" / f"three-{export_format}"
    judge, _ = load_judge(root / "runs" / "planted" / "bundle", exported["bundle_sha256"])
    rows = pa.Table.from_pylist(planted_rows("three", 6, 10, labelled=False), schema=ROW_SCHEMA)
    encoded = judge.encode({"three": rows})
    batch = collate(encoded, np.arange(6), 2, judge.pad_id)
    names: dict[str, Any] = {"input_ids": batch.input_ids_BS, "attention_mask": batch.mask_BS}
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), names)
    torch.testing.assert_close(
        names["logits"].detach().double(),
        torch.from_numpy(judge.logits(encoded, 4096))[:, :3],
        rtol=1e-4,
        atol=1e-4,
    )
    about = json.loads((folder / "relevance.json").read_text())
    assert (
        about["task"]["labels"] == ["bad", "fair", "good"]
        and about["bundle_sha256"] == exported["bundle_sha256"]
    )
    assert (folder / "tokenizer.json").is_file()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    last_json(
        relevance_in_process(
            "export", "--config", str(config), "--task", "three", "--format", export_format, cwd=root
        )
    )
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before, (
        "the same export again writes nothing"
    )


def test_an_export_over_something_or_of_nothing_is_refused_and_leaves_no_trace(finished_run: Any) -> None:
    root, config, _ = finished_run
    (root / "taken").mkdir()
    cases = [
        (
            ("--task", "two", "--out", str(root / "taken")),
            "taken exists already; remove it or name another folder with --out",
        ),
        (
            ("--task", "four", "--out", str(root / "new")),
            "task 'four' is not one of version 1's, which are two, three",
        ),
        (
            ("--task", "two", "--version", "9", "--out", str(root / "new")),
            "version 9 of model planted is not registered",
        ),
    ]
    for arguments, message in cases:
        refused = relevance_in_process("export", "--config", str(config), *arguments, cwd=root)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    assert not (root / "new").exists() and not [path for path in root.iterdir() if path.name.endswith(".tmp")]


def test_a_second_scoring_of_the_same_pairs_scores_nothing(finished_run: Any) -> None:
    root, config, _ = finished_run
    before = {m["partition"]: m["files"] for m in read_manifests(root / "runs" / "planted" / "scores")}
    result = last_json(relevance("score", "--config", str(config), cwd=root))
    assert (result["units_scored"], result["units_already_published"]) == (0, 4)
    assert {
        m["partition"]: m["files"] for m in read_manifests(root / "runs" / "planted" / "scores")
    } == before


def test_a_new_partition_is_scored_alone(finished_run: Any) -> None:
    root, config, _ = finished_run
    new = root / "to_score" / "task=two" / "part-new.parquet"
    write_rows(planted_rows("two", 4, 99, labelled=False), new)
    result = last_json(relevance("score", "--config", str(config), cwd=root))
    assert (result["units_scored"], result["rows_scored"], result["units_already_published"]) == (1, 4, 4)


def test_all_tasks_are_listed_then_labelled_for_every_row_and_a_second_time_nothing_is(
    finished_run: Any,
) -> None:
    root, config, _ = finished_run
    write_rows(
        planted_rows("three", 4, 60, labelled=False), root / "any_task" / "task=three" / "part-0.parquet"
    )
    write_rows(planted_rows("two", 2, 61, labelled=False), root / "any_task" / "task=two" / "part-0.parquet")
    scores = root / "scores-of-all"
    words = [
        "score",
        "--config",
        str(config),
        "--set",
        f"data.to_score={root / 'any_task'}",
        "--set",
        f"scoring.scores={scores}",
        "--all-tasks",
    ]
    listed = last_json(relevance_in_process(*words, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["rows_to_score"], listed["estimated_s"]) == (2, 6, None)
    result = last_json(relevance(*words, cwd=root))
    assert [result[name] for name in ("units_scored", "rows_scored", "rows_in", "labels", "errors")] == [
        2,
        6,
        6,
        12,
        0,
    ]
    labels = read_published(scores)
    assert set(zip(labels["row_id"].to_pylist(), labels["task"].to_pylist(), strict=True)) == {
        (row_id, task)
        for task in ("two", "three")
        for row_id in (*(f"three-60-{n}" for n in range(4)), "two-61-0", "two-61-1")
    }
    again = last_json(relevance(*words, cwd=root))
    assert (again["units_scored"], again["units_already_published"]) == (0, 2)
    listed = last_json(relevance_in_process(*words, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["estimated_s"]) == (0, 0), "the pace is known now"
    plain = last_json(relevance_in_process(*words[:-1], "--dry-run", cwd=root))
    assert (plain["units_to_score"], plain["estimated_s"]) == (2, None), (
        "the pace of a run for all tasks says nothing of a plain one"
    )


def test_days_of_a_bucket_are_listed_then_labelled_in_a_bucket_each_as_a_run_that_knows_its_day(
    finished_run: Any, s3: str
) -> None:
    root, config, _ = finished_run
    bucket = open_store("s3://labels/daily")
    for seed, day in ((70, "2026-01-31"), (71, "2026-02-01")):
        rows = planted_rows("two", 4, seed, labelled=False)
        rows[3]["ad_title"] = " "
        write_rows(rows, root / "upload.parquet")
        bucket.put(f"{day}/task=two/part-0.parquet", (root / "upload.parquet").read_bytes())
    days = [
        "--set",
        "data.to_score=s3://labels/daily/{date}",
        "--logical-date",
        "2026-01-31",
        "--until",
        "2026-02-01",
    ]
    scores = "s3://labels/scores"
    wrong = relevance(
        "score",
        "--config",
        str(config),
        *days,
        "--set",
        "scoring.scores=s3://nowhere/scores",
        "--dry-run",
        cwd=root,
    )
    assert (
        wrong.returncode == 2
        and "s3://nowhere/scores lies in no bucket that there is; make the bucket" in wrong.stderr
    )
    days += ["--set", f"scoring.scores={scores}"]
    listed = last_json(relevance_in_process("score", "--config", str(config), *days, "--dry-run", cwd=root))
    assert (listed["units_to_score"], listed["rows_to_score"], listed["estimated_s"]) == (2, 8, None)
    result = last_json(relevance("score", "--config", str(config), *days, cwd=root))
    assert [result[name] for name in ("scores", "units_scored", "rows_in", "labels", "errors")] == [
        scores,
        2,
        8,
        6,
        2,
    ]
    records = {
        day: json.loads(open_store(scores).get(path.removeprefix(f"{scores}/")))
        for day, path in result["dates"].items()
    }
    assert {day: record["logical_date"] for day, record in records.items()} == {
        "2026-01-31": "2026-01-31",
        "2026-02-01": "2026-02-01",
    }
    assert sorted(read_run(scores).column("row_id").to_pylist()) == ["two-71-0", "two-71-1", "two-71-2"]
    assert set(read_errors(scores).column("row_id").to_pylist()) == {"two-70-3", "two-71-3"}


def test_training_again_with_the_same_config_and_data_uses_the_finished_one(finished_run: Any) -> None:
    root, config, _ = finished_run
    manifest = (root / "runs" / "planted" / "trained" / "manifest.json").read_bytes()
    result = last_json(relevance_in_process("train", "--config", str(config), cwd=root))
    assert result["steps"] == 0
    assert (root / "runs" / "planted" / "trained" / "manifest.json").read_bytes() == manifest


def test_registering_the_same_bundle_again_makes_no_second_version(finished_run: Any) -> None:
    root, config, _ = finished_run
    assert last_json(relevance_in_process("register", "--config", str(config), cwd=root))["version"] == "1"


def test_later_rows_are_compared_with_the_profile_that_the_champion_carries(finished_run: Any) -> None:
    root, config, _ = finished_run
    result = relevance_in_process(
        "validate", "--config", str(config), "--set", "gate.reference_profile=champion", cwd=root
    )
    last_json(result)
    assert "compared with the data of version 1, the champion" in result.stderr
    validation = root / "runs" / "planted" / "validation"
    (carried,) = (root / "runs" / "planted" / "served").glob("version-1-*/artifacts/profile.json")
    assert carried.read_bytes() == (validation / "profile.json").read_bytes()
    features = json.loads((validation / "drift.json").read_text())["features"]
    assert features and all(feature["verdict"] == "steady" for feature in features)


def test_mlflow_holds_losses_per_task_metrics_and_the_digests(finished_run: Any) -> None:
    import mlflow

    root, _, finished = finished_run
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


def test_the_champion_predicts_in_a_clean_process_without_unpickling(finished_run: Any) -> None:
    root, _, finished = finished_run
    code = (
        "import mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri({last_json(finished)['tracking_uri']!r})\n"
        "model = mlflow.pyfunc.load_model('models:/planted@champion')\n"
        "frame = pd.DataFrame({'task': ['three', 'two'], 'query': ['red lamp', 'red lamp'], "
        "'ad_title': ['blue shoes north', 'blue shoes south']})\n"
        "out = model.predict(frame)\n"
        "print(out.columns.tolist(), out['label'].tolist())\n"
        "try:\n"
        "    model.predict(frame.assign(task='four'))\n"
        "except Exception as error:\n"
        "    print('four' in str(error) and 'two' in str(error))\n"
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
    columns, refused = shown.stdout.splitlines()[-2:]
    assert columns == "['probability', 'label', 'label_name', 'expected_grade', 'decision'] [0, 1]"
    assert refused == "True"


def test_a_model_below_the_floor_stays_challenger(finished_run: Any) -> None:
    root, config, _ = finished_run
    evaluation_path = root / "runs" / "planted" / "evaluation.json"
    kept = evaluation_path.read_text()
    worse = json.loads(kept)
    worse["macro_pr_auc"]["model"]["value"] = worse["macro_pr_auc"]["lexical"]["value"] - 0.01
    try:
        evaluation_path.write_text(json.dumps(worse))
        # another bundle, so that it becomes a version of its own
        lowered = relevance_in_process(
            "register", "--config", str(config), "--set", "registry.model=below", cwd=root
        )
        refused = relevance_in_process(
            "promote",
            "--config",
            str(config),
            "--set",
            "registry.model=below",
            "--version",
            last_json(lowered)["version"],
            cwd=root,
        )
    finally:
        evaluation_path.write_text(kept)
    assert refused.returncode == 1
    assert "lexical floor" in refused.stderr and "stays challenger" in refused.stderr
