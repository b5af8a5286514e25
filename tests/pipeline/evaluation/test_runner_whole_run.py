"""Evaluation of an untrained model, from rows to files."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.serialization.bundle import read_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.data.reader import data_digest, find_partitions, read_split
from pipeline.evaluation import runner as evaluation_module
from pipeline.evaluation.results import Evaluation
from pipeline.evaluation.runner import run_evaluation
from pipeline.inference.calibration import relevance_probability
from pipeline.inference.predictor import build_predictor
from pipeline.registry.version_files import VersionFiles
from pipeline.scoring.label_store import read_published
from tests.support.bundles import write_trained_bundle
from tests.support.in_process import InProcessEngine, in_process_predictor
from tests.support.planted import TRAINING, planted_config, write_planted
from tests.support.scoring_world import build_scorer, plan

SIDES = ("train", "valid", "test")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> RunConfig:
    """A run with accepted rows and a bundle."""
    root = tmp_path_factory.mktemp("evaluated")
    write_planted(root)
    config = build_config(planted_config(root, str(tiny_llama)), "test")
    shutil.copytree(root / "judged", config.accepted_dir)
    predictor = build_predictor(config)
    digest = data_digest(find_partitions(config.accepted_dir, config.tasks))
    training = TRAINING.model_copy(update={"data_digest": digest})
    write_trained_bundle(config.run_dir / "trained", predictor, config, training)
    return config


def evaluate(
    config: RunConfig, engine: InProcessEngine | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return evaluation.json and the calibration in the bundle."""
    predictor = in_process_predictor(config, engine)
    evaluation = run_evaluation(config, config.run_dir / "trained", predictor)
    recorded = json.loads((config.run_dir / "evaluation.json").read_text())
    assert Evaluation.from_json(recorded).to_json() == recorded == evaluation.to_json()
    return recorded, json.loads((config.run_dir / "bundle" / "bundle.json").read_text())["calibration"]


def reverse_labels(config: RunConfig, side: Any) -> None:
    """Reverse the labels of a split."""
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


def test_calibration_depends_on_valid_rows_only(config: RunConfig) -> None:
    first, calibration = evaluate(config)
    seen = {}
    for side in SIDES:
        reverse_labels(config, side)
        seen[side] = evaluate(config)
        reverse_labels(config, side)
    assert seen["train"][1] == seen["test"][1] == calibration
    assert seen["valid"][1] != calibration
    assert seen["test"][0]["macro_pr_auc"]["model"] != first["macro_pr_auc"]["model"], (
        "test labels were reversed"
    )
    assert seen["train"][0]["macro_pr_auc"]["lexical"] != first["macro_pr_auc"]["lexical"], (
        "train labels were reversed"
    )
    assert evaluate(config)[1] == calibration


def test_curves_are_written_as_svg_files(config: RunConfig) -> None:
    evaluate(config)
    names = {path.name for path in (config.run_dir / "plots").iterdir()}
    assert names == {
        f"{task}-{curve}.svg"
        for task in ("two", "three")
        for curve in ("relevant-rows", "defects", "reliability")
    }
    svg = (config.run_dir / "plots" / "two-defects.svg").read_text()
    assert svg.startswith("<svg") and ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_scoring_repeats_the_probabilities_of_the_evaluation(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: dict[str, Any] = {}
    build = evaluation_module.build_reference

    def recording_build(tasks: Any, canaries: Any, rows: Any) -> Any:
        for task in tasks:
            probability_N = relevance_probability(rows[task.name].probability_NC, task)
            row_ids = rows[task.name].table.column("row_id").to_pylist()
            evaluated.update(zip(row_ids, probability_N.tolist(), strict=True))
        return build(tasks, canaries, rows)

    monkeypatch.setattr(evaluation_module, "build_reference", recording_build)
    evaluate(config)
    to_score = config.run_dir / "again"
    for name, table in read_split(config.accepted_dir, config.tasks, config.split, "test").items():
        # in other batches than in the evaluation
        for part, rows in enumerate((table.slice(0, 3), table.slice(3))):
            path = to_score / f"task={name}" / f"part-{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path)
    places = {
        "data": config.data.model_copy(update={"to_score": to_score}),
        "scoring": config.scoring.model_copy(update={"batch_tokens": 64}),
    }
    again = config.model_copy(update=places)
    sha256 = read_bundle(config.run_dir / "bundle").sha256
    (config.run_dir / "attempts").mkdir(exist_ok=True)
    version = VersionFiles("1", config.run_dir / "bundle", sha256)
    scorer = build_scorer(again, version, config.run_dir / "attempts")
    assert not any(scorer.score_unit(unit).error for unit in plan(again, sha256)[0])
    scored = read_published(again.scores_location, sha256)
    found = dict(
        zip(scored.column("row_id").to_pylist(), scored.column("probability").to_pylist(), strict=True)
    )
    assert found.keys() == evaluated.keys() and len(found) > 20
    assert max(abs(found[row] - evaluated[row]) for row in found) < 1e-5
