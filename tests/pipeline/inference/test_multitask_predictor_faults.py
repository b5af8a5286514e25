"""Faults while rows are labelled for all tasks: rows that raise, kills, full disks, unlike machines."""

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
from pipeline.evaluation.score_reference import build_reference
from pipeline.inference import multitask_predictor as all_tasks
from pipeline.inference.multitask_predictor import AllTasksJudge
from pipeline.inference.predictor import fresh_judge
from pipeline.inference.probabilities import judge_rows
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.attempts import Attempts
from pipeline.scoring.label_store import read_manifests, read_published
from pipeline.storage.filesystem import write_json
from tests.support.all_tasks_scoring import EVERY_LAYER, SHARED, BuildWorld, unlike_tasks
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS


@pytest.mark.parametrize("blocks", [SHARED, EVERY_LAYER], ids=["one pass", "task by task"])
def test_rows_that_raise_or_give_no_number_fail_their_unit_and_are_named(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, blocks: dict[str, Any]
) -> None:
    world = build(**blocks)
    rows = planted_rows("three", ROWS, 6, labelled=False)
    rows[2]["query"] += " raise"
    write_rows(rows, world.root / "to_score" / "task=three" / "part-6-raise.parquet")
    rows = planted_rows("three", ROWS, 7, labelled=False)
    rows[3]["query"] += " nan"
    write_rows(rows, world.root / "to_score" / "task=three" / "part-7-nan.parquet")
    encoded, judged = AllTasksJudge.encode, AllTasksJudge.logits
    begun: list[int] = []
    queries: list[str] = []  # of the rows that were encoded last

    def noted(judge: AllTasksJudge, table: pa.Table) -> dict[str, list[np.ndarray]]:
        queries[:] = table.column("query").to_pylist()
        return encoded(judge, table)

    def poisoned(judge: AllTasksJudge, ids: Any, batch_tokens: int, on_rows: Any) -> dict[str, np.ndarray]:
        if any("raise" in query for query in queries):
            begun.append(len(queries))
            on_rows(np.arange(len(queries)))
            raise ArithmeticError("no such thing")
        logits = judged(judge, ids, batch_tokens, on_rows)
        logits["two"][["nan" in query for query in queries], 0] = np.nan
        return logits

    monkeypatch.setattr(AllTasksJudge, "encode", noted)
    monkeypatch.setattr(AllTasksJudge, "logits", poisoned)
    scorer = world.scorer()
    outcomes = {Path(unit.path).stem: scorer.outcome(unit) for unit in world.units(all_tasks=True)}
    assert "ArithmeticError: no such thing, while it judged rows three-6-2" in outcomes["part-6-raise"].error
    assert begun == [ROWS, 1], "tried whole, then the rows in hand by themselves"
    assert "no finite number for 1 rows (three-7-3)" in outcomes["part-7-nan"].error
    assert (
        sum(one.labels for one in outcomes.values())
        == 2 * 3 * ROWS
        == read_published(world.scores_dir).num_rows
    )


@pytest.mark.parametrize("blocks", [SHARED, EVERY_LAYER], ids=["one pass", "task by task"])
def test_the_watch_is_wound_and_rows_are_noted_before_every_pass(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, blocks: dict[str, Any]
) -> None:
    world = build(**blocks)
    scorer, unit = (
        world.scorer(),
        next(unit for unit in world.units(all_tasks=True) if unit.path.endswith("part-0-good.parquet")),
    )
    scorer.context = replace(scorer.context, batch_tokens=64)
    happened: list[str] = []
    monkeypatch.setattr(scorer.watch, "alive", lambda: happened.append("alive"))
    monkeypatch.setattr(Attempts, "take", lambda attempts, rows, row_ids: happened.extend(row_ids))
    monkeypatch.setattr(
        all_tasks, "all_task_logits", lambda *given: happened.append("pass") or all_task_logits(*given)
    )  # type: ignore[func-returns-value]
    assert scorer.outcome(unit).labels == 2 * ROWS
    noted = [one for one in happened if one not in ("alive", "pass")]
    assert set(noted) == {f"two-0-{number}" for number in range(ROWS)} and happened.count("alive") >= 2
    passes = [place for place, one in enumerate(happened) if one == "pass"]
    assert len(passes) > 2 if blocks is SHARED else not passes
    for place in passes:
        assert happened[place - 1] in noted, "nothing but a note of its rows comes before a pass"


def test_a_killed_attempt_is_gone_on_with_and_a_full_disk_leaves_the_unit_to_be_tried_again(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build(**SHARED)
    scorer, unit = world.scorer(), world.units(all_tasks=True)[0]
    attempts = Attempts(scorer.attempts_dir, unit.partition)
    attempts.begin()
    attempts.take(np.arange(2), ["a", "b"])
    with monkeypatch.context() as patched:
        patched.setattr(
            os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full"))
        )
        told = scorer.outcome(unit)
    assert told.retry and "disk full" in told.error and read_manifests(world.scores_dir) == []
    done = world.scorer().outcome(unit)
    assert (done.labels, done.rows, done.tasks) == (2 * ROWS, ROWS, ("two", "three"))
    assert scorer.outcome(unit) == type(done)(
        unit.partition, unit.path, 2 * ROWS, 0, tasks=("two", "three")
    ), "found published"


def test_a_machine_whose_one_pass_judges_canary_rows_otherwise_publishes_nothing(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build(**SHARED)
    judge = fresh_judge(world.config)
    unlike_tasks(judge)
    tables = {
        task.name: pa.Table.from_pylist(planted_rows(task.name, 20, 1), ROW_SCHEMA) for task in judge.tasks
    }
    said = {task.name: judge_rows(judge, tables[task.name], task, 512) for task in judge.tasks}
    write_json(world.root / "score_reference.json", build_reference(judge, world.sha256, tables, said, 512))
    judged = score_reference.judge_all_tasks
    unit = world.units(all_tasks=True)[0]
    with monkeypatch.context() as patched:
        patched.setattr(
            score_reference,
            "judge_all_tasks",
            lambda *given: {name: one * 0.9 for name, one in judged(*given).items()},
        )
        assert "canary rows are judged otherwise here" in world.scorer().outcome(unit).error
        assert read_manifests(world.scores_dir) == []
    assert world.scorer().outcome(unit).labels == 2 * ROWS
