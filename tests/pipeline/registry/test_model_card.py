"""Model card of a version, whose markets and paths are texts of others."""

from dataclasses import asdict, replace
from pathlib import Path

from pipeline.config.loading import build_config
from pipeline.evaluation.results import SliceResult, TaskEvaluation
from pipeline.inference.bundle_description import BackboneRecord, BundleDescription
from pipeline.inference.calibration import Calibration
from pipeline.registry.model_card import SHOWN_METRICS, model_card
from tests.support.champion import PR_AUC, SUMMARY, evaluation_of
from tests.support.planted import TRAINING, planted_config

FORGED = (
    "# APPROVED FOR PRODUCTION\n# APPROVED",
    "[x](http://e.vil)",
    "a | b | c",
    "<img src=http://e.vil>",
    "\u202ede",
    "\u2028# APPROVED",
)


def test_forged_markets_and_paths_stay_text_of_the_card(tmp_path: Path) -> None:
    metrics = dict.fromkeys(("pr_auc", *SHOWN_METRICS), PR_AUC)
    slices = tuple(SliceResult("market", name, 100, 50, metrics) for name in FORGED)
    task = TaskEvaluation(100, 50, 50, {"model": metrics, "lexical": metrics}, PR_AUC, slices, "d" * 64)
    evaluation = replace(evaluation_of("b" * 64), summary=replace(SUMMARY, tasks={"two": task}))
    config = build_config(planted_config(tmp_path, "package:x"), "test")
    description = BundleDescription(
        tasks=config.tasks,
        encode=config.encode,
        adapter=asdict(config.adapter),
        backbone=BackboneRecord(
            source="/m/a`b\n# APPROVED", revision="`x`", dtype="float32", quantization=None, digest="d" * 64
        ),
        seed=1,
        split=config.split,
        calibration={task.name: Calibration(relevant_at=0.5) for task in config.tasks},
        training=TRAINING,
    )
    card = model_card(config, description, "b" * 64, evaluation)
    assert [line for line in card.splitlines() if line.startswith("#") and "APPROVED" in line] == []
    assert "](http" not in card and "\u202e" not in card and "\u2028" not in card
    assert card.count("<img") == card.count(r"\<img") > 0
    rows = [line for line in card.splitlines() if line.startswith("| two | market")]
    assert len(rows) == len(FORGED)
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}
    assert "- two: temperature, temperature 1.000; relevant from 0.500, irrelevant never; abstains" in card
    assert "`` /m/a`b\\n# APPROVED `` at `` `x` ``" in card
