"""An evaluation from rows to files, of a model that was never trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.serialization.bundle import write_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.data.reader import data_digest, find_partitions, read_split
from pipeline.evaluation import runner as evaluation_module
from pipeline.evaluation.runner import run_evaluation
from pipeline.inference.calibration import relevance_probability
from pipeline.inference.predictor import describe, fresh_judge
from pipeline.registry.version_files import FetchedVersion
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.label_store import read_published
from pipeline.scoring.ray_pipeline import actor_settings
from pipeline.scoring.work_units import plan_units
from tests.support.planted import planted_config, write_planted

SIDES = ("train", "valid", "test")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> RunConfig:
    """A run whose rows were accepted and whose bundle is in place."""
    root = tmp_path_factory.mktemp("evaluated")
    write_planted(root)
    config = build_config(planted_config(root, str(tiny_llama)), "test")
    shutil.copytree(root / "judged", config.accepted_dir)
    judge = fresh_judge(config)
    training = {
        "fingerprint": "f" * 64,
        "data_digest": data_digest(find_partitions(config.accepted_dir, config.tasks)),
    }
    write_bundle(
        config.run_dir / "trained",
        describe(judge, config, training),
        judge.model.trainable_state(),
        judge.backbone.folder,
    )
    return config


def evaluate(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the evaluation, the calibration in the bundle)."""
    found = run_evaluation(config, config.run_dir / "trained", lambda *_: None, lambda *_: None)
    return found, json.loads((config.run_dir / "bundle" / "bundle.json").read_text())["calibration"]


def turn_labels(config: RunConfig, side: Any) -> None:
    """Every label of a side becomes the one at the other end."""
    rows = read_split(config.accepted_dir, config.tasks, config.split, side)
    for task in config.tasks:
        of_side = set(rows[task.name].column("row_id").to_pylist())
        (path,) = (config.accepted_dir / f"task={task.name}").glob("*.parquet")
        table, top = pq.read_table(path, partitioning=None), len(task.labels) - 1
        pairs = zip(table.column("row_id").to_pylist(), table.column("label").to_pylist(), strict=True)
        turned = pa.array(
            [top - label if row_id in of_side else label for row_id, label in pairs],
            table.schema.field("label").type,
        )
        pq.write_table(
            table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), turned), path
        )


def test_calibration_and_thresholds_come_of_the_valid_rows_and_of_no_others(config: RunConfig) -> None:
    first, calibration = evaluate(config)
    seen = {}
    for side in SIDES:
        turn_labels(config, side)
        seen[side] = evaluate(config)
        turn_labels(config, side)
    assert seen["train"][1] == seen["test"][1] == calibration
    assert seen["valid"][1] != calibration
    assert seen["test"][0]["macro_pr_auc"]["model"] != first["macro_pr_auc"]["model"], (
        "test labels were turned"
    )
    assert seen["train"][0]["macro_pr_auc"]["lexical"] != first["macro_pr_auc"]["lexical"], (
        "train labels were turned"
    )
    assert evaluate(config)[1] == calibration


def test_curves_lie_beside_the_figures_as_pictures(config: RunConfig) -> None:
    evaluate(config)
    names = {path.name for path in (config.run_dir / "plots").iterdir()}
    assert names == {
        f"{task}-{curve}.svg"
        for task in ("two", "three")
        for curve in ("relevant-rows", "defects", "reliability")
    }
    assert (
        (config.run_dir / "plots" / "two-defects.svg")
        .read_text()
        .startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    )


def test_scoring_says_of_a_row_what_evaluation_said_of_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: dict[str, Any] = {}
    build = evaluation_module.build_reference

    def recorded(judge: Any, sha256: str, tables: Any, said: Any, batch_tokens: int) -> Any:
        for task in judge.tasks:
            probability_N = relevance_probability(said[task.name], task)
            judged.update(
                zip(tables[task.name].column("row_id").to_pylist(), probability_N.tolist(), strict=True)
            )
        return build(judge, sha256, tables, said, batch_tokens)

    monkeypatch.setattr(evaluation_module, "build_reference", recorded)
    evaluate(config)
    to_score = config.run_dir / "again"
    for name, table in read_split(config.accepted_dir, config.tasks, config.split, "test").items():
        # in other company than when they were evaluated
        for part, rows in enumerate((table.slice(0, 3), table.slice(3))):
            path = to_score / f"task={name}" / f"part-{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path)
    places = {
        "data": config.data.model_copy(update={"to_score": to_score}),
        "scoring": config.scoring.model_copy(update={"batch_tokens": 64}),
    }
    again = config.model_copy(update=places)
    sha256 = json.loads((config.run_dir / "score_reference.json").read_text())["bundle_sha256"]
    (config.run_dir / "attempts").mkdir(exist_ok=True)
    scorer = UnitScorer(
        actor_settings(
            again, FetchedVersion("1", config.run_dir / "bundle", sha256), config.run_dir / "attempts"
        )
    )
    assert not any(scorer.outcome(unit).error for unit in plan_units(again, sha256)[0])
    scored = read_published(again.scores_place, sha256)
    found = dict(
        zip(scored.column("row_id").to_pylist(), scored.column("probability").to_pylist(), strict=True)
    )
    assert found.keys() == judged.keys() and len(found) > 20
    assert max(abs(found[row] - judged[row]) for row in found) < 1e-5
