"""`relevance score` with scoring.int8: measured once, told, and followed by every run after."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from scoring_world import World
from tiny import write_tiny_llama

from jobs import score as score_job
from jobs import score_precision
from jobs.cluster import ray_cluster
from jobs.score import run_plan, run_score
from models import quantize
from pipeline import int8_measure
from pipeline.commit import read_manifests
from pipeline.config import build_config
from pipeline.logs import Console
from pipeline.precision import keep_choice, refusal


def score(world: World, monkeypatch: pytest.MonkeyPatch, **scoring: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(the last line, the run's record, what people read)."""
    monkeypatch.setattr(score_job, "resolve_champion", lambda config: world.version)
    err, config = io.StringIO(), build_config({**world.plain, "scoring": {**world.plain["scoring"], **scoring}}, "test")
    result = run_score(config, Console(err=err, out=io.StringIO()))
    return result, json.loads(Path(result["run"]).read_text()), err.getvalue()


def test_a_model_that_int8_has_nothing_for_is_scored_natively_and_measured_once(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama, scoring={"int8": True})
    result, record, told = score(world, monkeypatch)
    assert (result["precision"], result["units_scored"], record["precision"]) == ("native", 2, "native")
    assert "int8: measured now" in told and "int8: not used, labels are of the native precision: no matrix of this model can be int8" in told
    assert record["int8"]["tasks"]["two"]["rows"] == 8 and not record["int8"]["used"]
    assert not any("precision" in manifest for manifest in read_manifests(world.scores_dir))

    def measured_again(*_: Any) -> Any:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(score_precision, "measure_on_ray", measured_again)
    again, _, told = score(world, monkeypatch)
    assert (again["units_scored"], again["units_already_published"]) == (0, 2) and "int8: not used" in told
    err = io.StringIO()
    assert score_precision.choose_precision(world.config, world.version, Console(err=err), all_tasks=True).precision == "native"
    assert "int8: not used with --all-tasks" in err.getvalue()
    plain, record, told = score(world, monkeypatch, int8=False)
    assert plain["units_already_published"] == 2 and "int8" not in told and "int8" not in record


def test_a_choice_of_int8_is_followed_by_every_run_and_a_rerun_scores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, write_tiny_llama(tmp_path / "wide", width=quantize.MIN_WIDTH), scoring={"int8": True})
    of_task = {"rows": 256, "mean": 0.001, "largest": 0.01, "labels": 0, "decisions": 0, "native_s": 1.0, "int8_s": 0.8}
    measured = {"tasks": {"two": of_task}, "canary_moves": 0.0, "matrices": 14, "failed": ""}
    keep_choice(world.scores_dir, world.sha256, world.config.scoring.int8_tolerance, measured)
    result, record, told = score(world, monkeypatch)
    assert (result["precision"], result["units_scored"], record["int8"]["used"]) == ("int8", 2, True)
    assert "int8: used, 1.25 times as fast" in told and {one["precision"] for one in read_manifests(world.scores_dir)} == {"int8"}
    again, _, told = score(world, monkeypatch)
    assert (again["units_scored"], again["units_already_published"], again["precision"]) == (0, 2, "int8") and "int8: used" in told
    monkeypatch.setattr(score_job, "resolve_champion", lambda config: world.version)
    plan = run_plan(world.config, Console(err=io.StringIO(), out=io.StringIO()), [None])
    assert (plan["units_to_score"], plan["units_already_published"]) == (0, 2)
    off, record, _ = score(world, monkeypatch, int8=False)
    assert (off["precision"], off["units_scored"], off["rows_reused"]) == ("native", 2, 0) and "int8" not in record


def test_rows_that_end_the_process_that_measures_are_a_refusal_and_not_the_end_of_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_measure, "measure", lambda *_: os._exit(9))
    with ray_cluster(1):
        found = int8_measure.measure_on_ray({"threads": 1}, "nowhere", ())
    assert "the process that measured ended 3 times" in refusal(found, 0.01)
