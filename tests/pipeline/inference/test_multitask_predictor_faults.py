"""Failures while rows are labeled for all tasks: failing rows, kills, full disks, other machines."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.inference.task_branching import all_task_logits
from pipeline.evaluation import score_reference
from pipeline.inference import multitask_predictor
from pipeline.inference.attempts import UnitAttempts
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import build_predictor
from pipeline.inference.step_plan import Step, planned
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import read_manifests, read_published
from tests.support.all_tasks_scoring import EVERY_LAYER, SHARED, BuildWorld, unlike_tasks
from tests.support.bundles import reference_of
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS


@pytest.mark.parametrize("blocks", [SHARED, EVERY_LAYER], ids=["one pass", "task by task"])
def test_failing_rows_fail_their_unit_and_are_listed(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, blocks: dict[str, Any]
) -> None:
    world = build(**blocks)
    rows = planted_rows("three", ROWS, 6, labeled=False)
    rows[2]["query"] += " raise"
    write_rows(rows, world.root / "to_score" / "task=three" / "part-6-raise.parquet")
    rows = planted_rows("three", ROWS, 7, labeled=False)
    rows[3]["query"] += " nan"
    write_rows(rows, world.root / "to_score" / "task=three" / "part-7-nan.parquet")
    encode, plan_logits = MultitaskPredictor.encode, MultitaskPredictor.plan_logits
    attempted: list[int] = []
    queries: list[str] = []  # of the rows that were encoded last

    def recording_encode(multitask: MultitaskPredictor, table: pa.Table) -> dict[str, list[np.ndarray]]:
        queries[:] = table.column("query").to_pylist()
        return encode(multitask, table)

    def fail() -> None:
        raise ArithmeticError("no such thing")

    @planned
    def failing_plan(multitask: MultitaskPredictor, ids_by_task: Any, batch_tokens: int) -> Any:
        if any("raise" in query for query in queries):
            attempted.append(len(queries))
            yield Step(np.arange(len(queries)), fail)
        logits = yield from plan_logits(multitask, ids_by_task, batch_tokens)
        logits["two"][["nan" in query for query in queries], 0] = np.nan
        return logits

    monkeypatch.setattr(MultitaskPredictor, "encode", recording_encode)
    monkeypatch.setattr(MultitaskPredictor, "plan_logits", failing_plan)
    scorer = world.scorer()
    outcomes = {Path(unit.path).stem: scorer.score_unit(unit) for unit in world.units(all_tasks=True)}
    assert "ArithmeticError: no such thing, while scoring rows three-6-2" in outcomes["part-6-raise"].error
    assert attempted == [ROWS, 1], "all rows, then each row in flight by itself"
    assert "logits are not finite for 1 rows: three-7-3" in outcomes["part-7-nan"].error
    assert (
        sum(one.labels for one in outcomes.values())
        == 2 * 3 * ROWS
        == read_published(world.scores_dir).num_rows
    )


@pytest.mark.parametrize("blocks", [SHARED, EVERY_LAYER], ids=["one pass", "task by task"])
def test_every_pass_follows_a_heartbeat_and_a_record(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, blocks: dict[str, Any]
) -> None:
    world = build(**blocks)
    scorer = world.scorer()
    units = {Path(unit.path).stem: unit for unit in world.units(all_tasks=True)}
    unit = units.pop("part-0-good")
    scorer.score_unit(units.popitem()[1])  # builds the predictor, which computes its canary rows
    scorer.context = replace(scorer.context, batch_tokens=64)
    happened: list[str] = []
    monkeypatch.setattr(scorer.actor.watchdog, "heartbeat", lambda: happened.append("alive"))
    monkeypatch.setattr(
        UnitAttempts, "record_in_flight", lambda attempts, rows, row_ids: happened.extend(row_ids)
    )
    monkeypatch.setattr(
        multitask_predictor,
        "all_task_logits",
        lambda *given: happened.append("pass") or all_task_logits(*given),
    )  # type: ignore[func-returns-value]
    assert scorer.score_unit(unit).labels == 2 * ROWS
    noted = [one for one in happened if one not in ("alive", "pass")]
    assert set(noted) == {f"two-0-{number}" for number in range(ROWS)} and happened.count("alive") >= 2
    passes = [place for place, one in enumerate(happened) if one == "pass"]
    assert len(passes) > 2 if blocks is SHARED else not passes
    for place in passes:
        assert happened[place - 1] in noted, "nothing but a note of its rows comes before a pass"


def test_killed_attempt_and_full_disk_are_retried(build: BuildWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build(**SHARED)
    scorer, unit = world.scorer(), world.units(all_tasks=True)[0]
    attempts = UnitAttempts(scorer.actor.attempts_dir, unit.unit_id)
    attempts.begin()
    attempts.record_in_flight(np.arange(2), ["a", "b"])
    with monkeypatch.context() as patched:
        patched.setattr(
            os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full"))
        )
        result = scorer.score_unit(unit)
    assert result.retry and "disk full" in result.error and read_manifests(world.scores_dir) == []
    done = world.scorer().score_unit(unit)
    assert (done.labels, done.rows, done.tasks) == (2 * ROWS, ROWS, ("two", "three"))
    assert scorer.score_unit(unit) == type(done)(
        unit.unit_id, unit.path, 2 * ROWS, 0, tasks=("two", "three")
    ), "found published"


def test_deviating_canaries_of_one_pass_block_publishing(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build(**SHARED)
    predictor = build_predictor(world.config)
    unlike_tasks(predictor)
    tables = {
        task.name: pa.Table.from_pylist(planted_rows(task.name, 20, 1), ROW_SCHEMA)
        for task in predictor.tasks
    }
    world.write_reference(reference_of(predictor, tables, 512).to_json())
    judged = score_reference.predict_multitask_probabilities
    unit = world.units(all_tasks=True)[0]
    with monkeypatch.context() as patched:
        patched.setattr(
            score_reference,
            "predict_multitask_probabilities",
            lambda *given: {name: one * 0.9 for name, one in judged(*given).items()},
        )
        assert "canary probabilities differ" in world.scorer().score_unit(unit).error
        assert read_manifests(world.scores_dir) == []
    assert world.scorer().score_unit(unit).labels == 2 * ROWS
