"""Rows that raise, give no finite logits, kill the process or make it hang.

Their unit fails after three attempts at most, and its error names them; the others are published.
"""

import copy
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

from pipeline.inference import labels as scores
from pipeline.inference.attempts import MAX_ATTEMPTS, LoadAttempts, UnitAttempts
from pipeline.inference.predictor import build_predictor
from pipeline.inference.step_plan import Step, planned
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import read_errors, read_manifests, read_published
from pipeline.scoring.unit_result import UnitResult
from tests.support.bundles import reference_of
from tests.support.patches import write_patch
from tests.support.places import ROOT
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS, World, by_name


def failing_step(num_rows: int, error: Exception) -> Step[None]:
    """A step over all rows that raises."""

    def fail() -> None:
        raise error

    return Step(np.arange(num_rows), fail)


def test_rows_that_raise_or_overflow_fail_only_their_unit(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama, "raise", "nan")
    plan_logits = scores.Predictor.plan_logits
    begun: list[int] = []

    @planned
    def poisoned(predictor: Any, encoded: Any, batch_tokens: int) -> Any:
        queries = encoded.query_N.to_pylist()
        if any("POISON raise" in query for query in queries):
            begun.append(len(encoded))
            yield failing_step(len(encoded), ArithmeticError("no such thing"))
        logits_NC = yield from plan_logits(predictor, encoded, batch_tokens)
        logits_NC[["POISON nan" in query for query in queries], 0] = np.nan
        return logits_NC

    monkeypatch.setattr(scores.Predictor, "plan_logits", poisoned)
    scorer = world.scorer()
    results = by_name([scorer.score_unit(unit) for unit in world.units()])
    assert "ArithmeticError: no such thing, while scoring rows two-1-2" in results["raise"].error
    assert begun == [ROWS, 1], "the whole unit, then the rows in flight one by one"
    assert "logits are not finite for 1 rows: two-2-2" in results["nan"].error
    assert results["good"].error == "" and results["good"].labels == ROWS
    assert (
        len(read_manifests(world.scores_dir)) == 2 and read_published(world.scores_dir).num_rows == 2 * ROWS
    )


def test_unit_is_attempted_three_times_at_most(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    attempts = UnitAttempts(scorer.actor.attempts_dir, unit.unit_id)
    for _ in range(MAX_ATTEMPTS):
        attempts.begin()
    attempts.record_in_flight(np.arange(6), ["a", "b", "c", "d", "e", "f"])
    result = scorer.score_unit(unit)
    assert (
        "process crashed or hung 3 times, last while scoring rows a, b, c, d, e, and 1 more; remove these"
    ) in result.error
    assert not read_manifests(world.scores_dir)
    assert scorer.score_unit(world.units()[1]).labels == ROWS


def test_wrong_canary_probabilities_publish_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    predictor = build_predictor(world.config)
    tables = {
        task.name: pa.Table.from_pylist(planted_rows(task.name, 20, 1), ROW_SCHEMA)
        for task in predictor.tasks
    }
    reference = reference_of(predictor, tables, 512).to_json()
    wrong = copy.deepcopy(reference)
    wrong["canaries"]["three"]["probability"][3] += 0.03
    world.write_reference(wrong)
    refused = world.scorer().score_unit(world.units()[0])
    assert (
        "canary probabilities differ from those of the version's evaluation by up to 0.0300" in refused.error
    )
    assert not read_manifests(world.scores_dir)
    world.write_reference(reference)
    assert world.scorer().score_unit(world.units()[0]).labels == ROWS


def test_bad_rows_are_published_as_errors_beside_labels(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    rows = planted_rows("two", ROWS, 9, labeled=False)
    rows[1]["query"] = " "
    write_rows(rows, tmp_path / "to_score" / "task=two" / "part-9-bad.parquet")
    (tmp_path / "to_score" / "task=two" / "part-8-empty.parquet").unlink(missing_ok=True)
    write_rows([], tmp_path / "to_score" / "task=two" / "part-8-empty.parquet")
    scorer = world.scorer()
    results = by_name([scorer.score_unit(unit) for unit in world.units()])
    assert (results["bad"].labels, results["bad"].errors, results["empty"].labels) == (ROWS - 1, 1, 0)
    [error] = read_errors(world.scores_dir).to_pylist()
    assert (error["row_id"], error["row"], error["reason"]) == ("two-9-1", 1, "query is blank")
    for manifest in read_manifests(world.scores_dir):
        assert manifest.num_labels + manifest.num_errors == manifest.input.num_rows


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk broken"])
def test_disk_failure_at_any_write_makes_the_unit_retryable(
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
            result = scorer.score_unit(unit)
        if result.error:
            failed += 1
            assert result.retry and os.strerror(code) in result.error
            assert (
                unit.unit_id in {one.unit_id for one in world.units()}
                or read_published(world.scores_dir).num_rows == ROWS
            )
        assert read_published(world.scores_dir).num_rows in (0, ROWS)
        shutil.rmtree(world.scores_dir, ignore_errors=True)
        shutil.rmtree(scorer.actor.attempts_dir)
        scorer.actor.attempts_dir.mkdir()
    assert failed >= 8
    assert [scorer.score_unit(unit).error for unit in world.units()] == ["", ""] and read_published(
        world.scores_dir
    ).num_rows == 2 * ROWS


def test_changed_file_is_not_published_under_its_old_id(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    write_rows(planted_rows("two", ROWS, 99, labeled=False), Path(unit.path))
    result = scorer.score_unit(unit)
    assert (
        result.retry
        and "changed while it was scored" in result.error
        and not read_manifests(world.scores_dir)
    )


def test_large_file_is_scored_in_parts(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    from pipeline.scoring import work_units

    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    world = World(tmp_path, tiny_llama)
    rows = planted_rows("two", 32, 7, labeled=False)
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
    assert [scorer.score_unit(unit).error for unit in units] == [""] * len(units)
    found = [
        row_id
        for row_id in read_published(world.scores_dir).column("row_id").to_pylist()
        if row_id.startswith("two-7-")
    ]
    assert sorted(found) == sorted(row["row_id"] for row in rows if row["ad_title"])
    assert read_errors(world.scores_dir).column("row").to_pylist() == [30]
    assert world.units() == []


MISBEHAVING = """
def instead_of(plan_probabilities):
    import numpy
    from pipeline.inference.step_plan import Step, planned

    def misbehaving(query):
        if "exit" in query:
            os._exit(1)
        os.kill(os.getpid(), 19) if "stop" in query else hold_still()

    @planned
    def poisoned(predictor, table, task, batch_tokens, prefetch=True):
        for query in table.column("query").to_pylist():
            if "POISON" in query:
                yield Step(numpy.arange(table.num_rows), lambda query=query: misbehaving(query))
        plan = plan_probabilities(predictor, table, task, batch_tokens, prefetch)
        return (yield from plan)

    return poisoned
"""

ON_RAY = """
import json, sys
from pathlib import Path
from jobs.cluster import ray_cluster
from pipeline.config.loading import build_config
from pipeline.registry.version_files import VersionFiles
from pipeline.scoring.actor_settings import build_actor_settings
from pipeline.inference.attempts import create_attempts_dir
from pipeline.scoring.actor import score_on_ray
from tests.support.scoring_world import plan
plain, bundle_dir, sha256 = json.loads(sys.argv[1])
config = build_config(plain, "test")
with ray_cluster(1):
    units, _ = plan(config, sha256)
    version = VersionFiles("1", Path(bundle_dir), sha256)
    attempts_dir = create_attempts_dir(config.run_dir, "scoring", "a-run")
    settings = build_actor_settings(config.scoring, config.scores_location, version, attempts_dir)
    print("RESULTS " + json.dumps([result.to_json() for result in score_on_ray(units, settings)]))
"""


def results_on_ray(world: World) -> list[UnitResult]:
    """Return the results of all units, scored by patched actors."""
    environment = os.environ | {"PYTHONPATH": f"{world.root / 'patch'}:{ROOT}"}
    command = [
        sys.executable,
        "-c",
        ON_RAY,
        json.dumps([world.plain, str(world.root / "bundle"), world.sha256]),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULTS "))
    return [UnitResult.from_json(one) for one in json.loads(line.removeprefix("RESULTS "))]


@pytest.mark.failures
def test_rows_that_kill_or_hang_the_process_are_tried_three_times(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama, "exit", "hang", "stop")
    write_patch(tmp_path / "patch", "pipeline.inference.labels", "plan_probabilities", MISBEHAVING)
    started_s = time.monotonic()
    results = by_name(results_on_ray(world))
    for kind, row in (("exit", "two-1-2"), ("hang", "two-2-2"), ("stop", "two-3-2")):
        assert f"process crashed or hung 3 times, last while scoring rows {row};" in results[kind].error
    assert results["good"].labels == ROWS and read_published(world.scores_dir).num_rows == 2 * ROWS
    stuck = [
        path.read_text() for path in world.config.run_dir.glob("scoring/*/stuck-*.txt") if path.stat().st_size
    ]
    assert [sum(words in text for text in stuck) for words in ("in misbehaving", "killed: no heartbeat")] == [
        MAX_ATTEMPTS,
        MAX_ATTEMPTS,
    ]
    assert time.monotonic() - started_s < 400


ENDING = """
def instead_of(load_backbone):
    return lambda *_, **__: os._exit(1)
"""


@pytest.mark.failures
def test_process_crashing_at_model_loading_starts_three_times(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    write_patch(tmp_path / "patch", "pipeline.inference.predictor", "load_backbone", ENDING)
    results = results_on_ray(world)
    assert len(results) == 2 and all("model loading crashed or hung 3 times" in one.error for one in results)
    assert not read_manifests(world.scores_dir)


def test_successful_load_resets_the_count_of_crashes(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    loads = LoadAttempts(world.scorer().actor.attempts_dir)
    for _ in range(MAX_ATTEMPTS - 1):
        loads.begin()
    scorer, unit = world.scorer(), world.units()[0]
    assert loads.count() == 0 and scorer.score_unit(unit).labels == ROWS
    for _ in range(MAX_ATTEMPTS):
        loads.begin()
    assert (
        "model loading crashed or hung 3 times in a row; see the worker's log"
        in world.scorer().score_unit(world.units()[0]).error
    )


def test_missing_gpu_is_reported_and_nothing_published(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    world = World(tmp_path, tiny_llama, scoring={"use_gpu": True})
    assert (
        "use_gpu is true (scoring or evaluation) and torch finds no GPU on this node"
        in world.scorer().score_unit(world.units()[0]).error
    )
    assert not read_manifests(world.scores_dir)


class EndedError(BaseException):
    """Stands for the end of the process."""


def test_lost_gpu_ends_the_process_but_full_memory_does_not(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]

    def end(code: int) -> None:
        raise EndedError

    def failing(error: Exception) -> Any:
        @planned
        def plan_logits(predictor: Any, encoded: Any, batch_tokens: int) -> Any:
            yield failing_step(len(encoded), error)

        return plan_logits

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(
        scores.Predictor,
        "plan_logits",
        failing(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")),
    )
    with pytest.raises(EndedError):
        scorer.score_unit(unit)
    assert UnitAttempts(scorer.actor.attempts_dir, unit.unit_id).count() == 1, (
        "the next process makes the other attempts"
    )
    monkeypatch.setattr(
        scores.Predictor, "plan_logits", failing(torch.OutOfMemoryError("CUDA out of memory"))
    )
    assert "OutOfMemoryError: CUDA out of memory, while scoring rows two-0-0" in scorer.score_unit(unit).error


def test_second_attempt_records_rows_before_tokenizing(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    attempts, seen = UnitAttempts(scorer.actor.attempts_dir, unit.unit_id), []
    encode = scores.Predictor.encode
    monkeypatch.setattr(
        scores.Predictor,
        "encode",
        lambda predictor, tables: seen.append(attempts.in_flight_rows()) or encode(predictor, tables),
    )
    assert scorer.score_unit(unit).error == "" and seen == [[]]
    (world.scores_dir / "manifests" / f"{unit.unit_id}.json").unlink()
    attempts.record_in_flight(np.arange(4), list("abcd"))  # as a killed attempt leaves them
    assert (
        scorer.score_unit(unit).error == ""
        and sorted(seen[1:5]) == [[0], [1], [2], [3]]
        and seen[5:] == [[0, 1, 2, 3]]
    )
