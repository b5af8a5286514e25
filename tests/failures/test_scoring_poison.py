"""Rows that raise, give no number, end the process or hang: their unit fails, naming them, after three
attempts at most; the others are published.
"""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.evaluation.score_reference import build_reference
from pipeline.inference import labels as scores
from pipeline.inference.predictor import fresh_judge
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.actor import Outcome
from pipeline.scoring.attempts import MAX_ATTEMPTS, Attempts, Starts
from pipeline.scoring.label_store import read_errors, read_manifests, read_published
from pipeline.storage.filesystem import write_json
from tests.support.patches import write_patch
from tests.support.places import ROOT
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS, World


def by_kind(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {Path(one.path).stem.split("-")[2]: one for one in outcomes}


def test_rows_that_raise_or_give_no_number_fail_their_unit_alone_and_are_named(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama, "raise", "nan")
    judged = scores.Judge.logits
    begun: list[int] = []

    def poisoned(judge: Any, encoded: Any, batch_tokens: int, on_rows: Any) -> np.ndarray:
        queries = encoded.query_N.to_pylist()
        if any("POISON raise" in query for query in queries):
            begun.append(len(encoded))
            on_rows(np.arange(len(encoded)))
            raise ArithmeticError("no such thing")
        logits_NC = judged(judge, encoded, batch_tokens, on_rows)
        logits_NC[["POISON nan" in query for query in queries], 0] = np.nan
        return logits_NC

    monkeypatch.setattr(scores.Judge, "logits", poisoned)
    scorer = world.scorer()
    outcomes = by_kind([scorer.outcome(unit) for unit in world.units()])
    assert "ArithmeticError: no such thing, while it judged rows two-1-2" in outcomes["raise"].error
    assert begun == [ROWS, 1], "tried whole, then the rows in hand by themselves"
    assert "no finite number for 1 rows (two-2-2)" in outcomes["nan"].error
    assert outcomes["good"].error == "" and outcomes["good"].labels == ROWS
    assert (
        len(read_manifests(world.scores_dir)) == 2 and read_published(world.scores_dir).num_rows == 2 * ROWS
    )


def test_a_unit_that_was_begun_three_times_is_told_with_the_rows_in_hand_and_not_begun_again(
    tmp_path: Path, tiny_llama: Path
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    attempts = Attempts(scorer.attempts_dir, unit.partition)
    for _ in range(MAX_ATTEMPTS):
        attempts.begin()
    attempts.take(np.arange(6), ["a", "b", "c", "d", "e", "f"])
    told = scorer.outcome(unit)
    assert (
        "ended or got no further 3 times, the last time while it judged rows a, b, c, d, e and 1 more; "
        "take these rows out"
    ) in told.error
    assert not read_manifests(world.scores_dir)
    assert scorer.outcome(world.units()[1]).labels == ROWS


def test_a_machine_that_judges_canary_rows_otherwise_publishes_nothing(
    tmp_path: Path, tiny_llama: Path
) -> None:
    world = World(tmp_path, tiny_llama)
    judge = fresh_judge(world.config)
    tables = {
        task.name: pa.Table.from_pylist(planted_rows(task.name, 20, 1), ROW_SCHEMA) for task in judge.tasks
    }
    said = {task.name: scores.judge_rows(judge, tables[task.name], task, 512) for task in judge.tasks}
    reference = build_reference(judge, world.sha256, tables, said, 512)
    right = json.dumps(reference)
    reference["canaries"]["three"]["probability"][3] += 0.03
    write_json(tmp_path / "score_reference.json", reference)
    refused = world.scorer().outcome(world.units()[0])
    assert (
        "canary rows are judged otherwise here than when the version was evaluated: by up to 0.0300"
        in refused.error
    )
    assert not read_manifests(world.scores_dir)
    (tmp_path / "score_reference.json").write_text(right)
    assert world.scorer().outcome(world.units()[0]).labels == ROWS


def test_bad_rows_are_published_as_errors_beside_the_labels_of_the_others(
    tmp_path: Path, tiny_llama: Path
) -> None:
    world = World(tmp_path, tiny_llama)
    rows = planted_rows("two", ROWS, 9, labelled=False)
    rows[1]["query"] = " "
    write_rows(rows, tmp_path / "to_score" / "task=two" / "part-9-bad.parquet")
    (tmp_path / "to_score" / "task=two" / "part-8-empty.parquet").unlink(missing_ok=True)
    write_rows([], tmp_path / "to_score" / "task=two" / "part-8-empty.parquet")
    scorer = world.scorer()
    outcomes = by_kind([scorer.outcome(unit) for unit in world.units()])
    assert (outcomes["bad"].labels, outcomes["bad"].errors, outcomes["empty"].labels) == (ROWS - 1, 1, 0)
    [error] = read_errors(world.scores_dir).to_pylist()
    assert (error["row_id"], error["row"], error["reason"]) == ("two-9-1", 1, "query is blank")
    for manifest in read_manifests(world.scores_dir):
        assert manifest["rows"] + manifest["error_rows"] == manifest["input"]["rows"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk broken"])
def test_a_disk_that_fails_at_any_write_of_a_unit_leaves_it_to_be_tried_again(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer = world.scorer()
    writes = {
        "sync": (os, "fsync"),
        "open": (Path, "open"),
        "note": (Path, "write_text"),
        "name": (os, "link"),
        "replace": (Path, "replace"),
    }
    failed = 0
    for (owner, name), number in itertools.product(writes.values(), range(1, 8)):
        calls, real, unit = itertools.count(1), getattr(owner, name), world.units()[0]

        def failing(
            *arguments: Any, calls: Any = calls, real: Any = real, number: int = number, **options: Any
        ) -> Any:
            if next(calls) == number:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing)
            told = scorer.outcome(unit)
        if told.error:
            failed += 1
            assert told.retry and os.strerror(code) in told.error
            assert (
                unit.partition in {one.partition for one in world.units()}
                or read_published(world.scores_dir).num_rows == ROWS
            )
        assert read_published(world.scores_dir).num_rows in (0, ROWS)
        shutil.rmtree(world.scores_dir, ignore_errors=True)
        shutil.rmtree(scorer.attempts_dir)
        scorer.attempts_dir.mkdir()
    assert failed >= 8
    assert [scorer.outcome(unit).error for unit in world.units()] == ["", ""] and read_published(
        world.scores_dir
    ).num_rows == 2 * ROWS


def test_a_file_that_changed_since_it_was_planned_is_not_scored_under_its_old_name(
    tmp_path: Path, tiny_llama: Path
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    write_rows(planted_rows("two", ROWS, 99, labelled=False), Path(unit.path))
    told = scorer.outcome(unit)
    assert told.retry and "changed while it was scored" in told.error and not read_manifests(world.scores_dir)


def test_a_large_file_is_taken_in_parts(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    from pipeline.scoring import work_units as score_units

    monkeypatch.setattr(score_units, "UNIT_ROWS", 10)
    world = World(tmp_path, tiny_llama)
    rows = planted_rows("two", 32, 7, labelled=False)
    rows[30]["ad_title"] = ""
    pq.write_table(
        pa.Table.from_pylist(rows, ROW_SCHEMA),
        tmp_path / "to_score" / "task=two" / "part-7-large.parquet",
        row_group_size=4,
    )
    units = world.units()
    assert [unit.part for unit in units if "part-7-large" in unit.path] == [
        (0, 10),
        (10, 20),
        (20, 30),
        (30, 32),
    ]
    scorer = world.scorer()
    assert [scorer.outcome(unit).error for unit in units] == [""] * len(units)
    found = [
        row_id
        for row_id in read_published(world.scores_dir).column("row_id").to_pylist()
        if row_id.startswith("two-7-")
    ]
    assert sorted(found) == sorted(row["row_id"] for row in rows if row["ad_title"])
    assert read_errors(world.scores_dir).column("row").to_pylist() == [30]
    assert world.units() == []


MISBEHAVING = """
def instead_of(judge_rows):
    def misbehaving(judge, table, task, batch_tokens, on_rows, ahead=True):
        import numpy
        for row, query in enumerate(table.column("query").to_pylist()):
            if "POISON" in query:
                on_rows(numpy.arange(table.num_rows))
                if "exit" in query:
                    os._exit(1)
                os.kill(os.getpid(), 19) if "stop" in query else hold_still()
        return judge_rows(judge, table, task, batch_tokens, on_rows, ahead)
    return misbehaving
"""

ON_RAY = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from jobs.cluster import ray_cluster
from pipeline.config.loading import build_config
from pipeline.registry.version_files import FetchedVersion
from pipeline.scoring.ray_pipeline import scored_units
from pipeline.scoring.work_units import plan_units
plain, bundle_dir, sha256 = json.loads(sys.argv[1])
config = build_config(plain, "test")
with ray_cluster(1):
    units, _ = plan_units(config, sha256)
    version = FetchedVersion("1", Path(bundle_dir), sha256)
    print("OUTCOMES " + json.dumps([asdict(one) for one in scored_units(config, units, version)]))
"""


def outcomes_on_ray(world: World) -> list[Outcome]:
    """Of all units, scored by actors that are patched."""
    environment = os.environ | {"PYTHONPATH": f"{world.root / 'patch'}:{ROOT}"}
    command = [
        sys.executable,
        "-c",
        ON_RAY,
        json.dumps([world.plain, str(world.root / "bundle"), world.sha256]),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("OUTCOMES "))
    return [Outcome(**one) for one in json.loads(line.removeprefix("OUTCOMES "))]


@pytest.mark.failures
def test_rows_that_end_hang_or_stop_the_process_are_tried_three_times_and_the_others_are_published(
    tmp_path: Path, tiny_llama: Path
) -> None:
    world = World(tmp_path, tiny_llama, "exit", "hang", "stop")
    write_patch(tmp_path / "patch", "pipeline.inference.labels", "judge_rows", MISBEHAVING)
    started_s = time.monotonic()
    outcomes = by_kind(outcomes_on_ray(world))
    for kind, row in (("exit", "two-1-2"), ("hang", "two-2-2"), ("stop", "two-3-2")):
        assert (
            f"ended or got no further 3 times, the last time while it judged rows {row};"
            in outcomes[kind].error
        )
    assert outcomes["good"].labels == ROWS and read_published(world.scores_dir).num_rows == 2 * ROWS
    stuck = [
        path.read_text() for path in world.config.run_dir.glob("scoring/*/stuck-*.txt") if path.stat().st_size
    ]
    assert [sum(words in text for text in stuck) for words in ("in misbehaving", "gave no sign of life")] == [
        MAX_ATTEMPTS,
        MAX_ATTEMPTS,
    ]
    assert time.monotonic() - started_s < 400


ENDING = """
def instead_of(load_backbone):
    return lambda *_, **__: os._exit(1)
"""


@pytest.mark.failures
def test_a_process_that_ends_over_its_start_is_started_three_times_and_no_more(
    tmp_path: Path, tiny_llama: Path
) -> None:
    world = World(tmp_path, tiny_llama)
    write_patch(tmp_path / "patch", "pipeline.inference.predictor", "load_backbone", ENDING)
    outcomes = outcomes_on_ray(world)
    assert len(outcomes) == 2 and all(
        "ended or got no further while it loaded the model, 3 times" in one.error for one in outcomes
    )
    assert not read_manifests(world.scores_dir)


def test_a_start_that_comes_through_makes_up_for_those_that_did_not(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    starts = Starts(world.scorer().attempts_dir)
    for _ in range(MAX_ATTEMPTS - 1):
        starts.begin()
    scorer, unit = world.scorer(), world.units()[0]
    assert starts.number() == 0 and scorer.outcome(unit).labels == ROWS
    for _ in range(MAX_ATTEMPTS):
        starts.begin()
    assert (
        "while it loaded the model, 3 times; see Ray's logs" in world.scorer().outcome(world.units()[0]).error
    )


def test_a_gpu_that_is_not_there_is_told_and_nothing_is_published(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama, scoring={"use_gpu": True})
    assert (
        "scoring.use_gpu is set, and torch finds no GPU here"
        in world.scorer().outcome(world.units()[0]).error
    )
    assert not read_manifests(world.scores_dir)


class EndedError(BaseException):
    """In the place of a process's end."""


def test_a_process_whose_gpu_is_lost_ends_and_a_gpu_without_room_only_fails_the_unit(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]

    def end(code: int) -> None:
        raise EndedError

    def failing(error: Exception) -> Any:
        def logits(judge: Any, encoded: Any, batch_tokens: int, on_rows: Any) -> np.ndarray:
            on_rows(np.arange(len(encoded)))
            raise error

        return logits

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(
        scores.Judge,
        "logits",
        failing(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")),
    )
    with pytest.raises(EndedError):
        scorer.outcome(unit)
    assert Attempts(scorer.attempts_dir, unit.partition).number() == 1, (
        "the others are left to the process after it"
    )
    monkeypatch.setattr(scores.Judge, "logits", failing(torch.OutOfMemoryError("CUDA out of memory")))
    assert "OutOfMemoryError: CUDA out of memory, while it judged rows two-0-0" in scorer.outcome(unit).error


def test_at_the_second_attempt_rows_are_told_before_they_are_tokenised(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    attempts, seen = Attempts(scorer.attempts_dir, unit.partition), []
    encode = scores.Judge.encode
    monkeypatch.setattr(
        scores.Judge,
        "encode",
        lambda judge, tables: seen.append(attempts.rows_taken()) or encode(judge, tables),
    )
    assert scorer.outcome(unit).error == "" and seen == [[]]
    (world.scores_dir / "manifests" / f"{unit.partition}.json").unlink()
    assert (
        scorer.outcome(unit).error == ""
        and sorted(seen[1:5]) == [[0], [1], [2], [3]]
        and seen[5:] == [[0, 1, 2, 3]]
    )
