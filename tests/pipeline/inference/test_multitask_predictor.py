"""Every row labelled for every task: in one pass where the model shares layers enough, else task by task, and
always as plain scoring would.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from models.inference.task_branching import all_task_logits
from pipeline.errors import DamagedInputError
from pipeline.evaluation import score_reference
from pipeline.evaluation.score_reference import build_reference
from pipeline.inference import multitask_predictor as all_tasks
from pipeline.inference.calibration import Calibration
from pipeline.inference.labels import ScoringContext, score_rows
from pipeline.inference.multitask_predictor import ONE_PASS_SHARE, AllTasksJudge
from pipeline.inference.predictor import Judge, fresh_judge
from pipeline.inference.probabilities import judge_rows
from pipeline.registry.version_files import FetchedVersion
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.attempts import Attempts
from pipeline.scoring.label_store import put_record, read_errors, read_manifests, read_published, read_run
from pipeline.scoring.run_record import ScoringRun, run_record
from pipeline.storage.filesystem import read_json, write_json
from tests.support.planted import planted_config, planted_rows, write_rows
from tests.support.scoring_world import ROWS, World
from tests.support.tiny import write_tiny_llama

MTL = {"method": "mtl_lora", "target_modules": ["q_proj", "v_proj"], "rank": 4}
SHARED = {"adapter": {**MTL, "task_layers": 1}}  # of 4 layers the last one knows tasks: 5 of 8 layers
EVERY_LAYER = {"adapter": MTL}
ONE_FOR_ALL = {"adapter": {"method": "lora", "target_modules": ["q_proj", "v_proj"], "rank": 4}}
OTHER_TEMPLATE = "Ask: {query}\nItem: {ad_title} {ad_description}"
CLOSE = 1e-5
BuildWorld = Callable[..., World]


@pytest.fixture(scope="module")
def deep_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 4 layers."""
    return write_tiny_llama(tmp_path_factory.mktemp("deep") / "llama", num_layers=4)


def unlike_tasks(judge: Judge) -> None:
    """Every trained number stirred, and each task calibrated in its own way."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in judge.model.trainable_state().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    judge.calibration["two"] = Calibration(temperature=3.0, relevant_at=0.5)
    judge.calibration["three"] = Calibration(method="platt", slope=0.5, intercept=0.2, irrelevant_below=0.6)


@pytest.fixture
def build(tmp_path: Path, deep_llama: Path) -> BuildWorld:
    """Two units of `two`, one of `three`."""

    def built(**blocks: Any) -> World:
        world = World(tmp_path, deep_llama, prepare=unlike_tasks, **blocks)
        write_rows(
            planted_rows("three", ROWS, 5, labelled=False),
            tmp_path / "to_score" / "task=three" / "part-5-other.parquet",
        )
        return world

    return built


def templates(second: str) -> dict[str, Any]:
    """The planted tasks, the second with this template."""
    two, three = planted_config(Path("/"), "")["tasks"]
    return {"tasks": [two, {**three, "template": second}]}


def all_inputs(world: World) -> pa.Table:
    files = sorted((world.root / "to_score").rglob("*.parquet"))
    return pa.concat_tables(ds.dataset(file).to_table() for file in files).cast(ROW_SCHEMA)


def score_all(world: World, run: str = "", expect_error: str = "") -> tuple[UnitScorer, dict[str, Any]]:
    """(the scorer, the run's record) of all units that are left."""
    scorer, units = world.scorer(), world.units(all_tasks=True)
    outcomes = [scorer.outcome(unit) for unit in units]
    assert all(expect_error in one.error if expect_error else not one.error for one in outcomes), outcomes
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    record = run_record(
        world.scores_dir, ScoringRun(run or "20260131-a", champion, 0.0, None), units, outcomes
    )
    put_record(world.scores_dir, record)
    return scorer, record


def check_as_plain(world: World, published: pa.Table) -> None:
    """Each row has one label of each task, that which plain scoring gives."""
    found = {(row["row_id"], row["task"]): row for row in published.to_pylist()}
    inputs, plain = all_inputs(world), world.scorer().judge
    assert len(found) == published.num_rows == inputs.num_rows * 2
    for task in plain.tasks:
        for expected in score_rows(plain, inputs, task, ScoringContext(4_096, "1", world.sha256)).to_pylist():
            row = found[expected["row_id"], task.name]
            assert row["probability"] == pytest.approx(expected["probability"], abs=CLOSE)
            assert row["expected_grade"] == pytest.approx(expected["expected_grade"], abs=CLOSE)
            assert all(
                row[name] == expected[name]
                for name in ("label", "label_name", "decision", "input_hash", "bundle_sha256")
            )
    decisions = {
        task: {row["decision"] for (_, of), row in found.items() if of == task} for task in ("two", "three")
    }
    assert decisions["two"] <= {"relevant", "abstain"} and decisions["three"] <= {"irrelevant", "abstain"}, (
        "by each task's own thresholds"
    )
    assert {"relevant", "irrelevant"} & (decisions["two"] | decisions["three"])


@pytest.mark.parametrize(
    ("blocks", "one_pass"),
    [
        (SHARED, True),
        (ONE_FOR_ALL, True),
        (EVERY_LAYER, False),
        ({"adapter": {**MTL, "task_layers": 2}}, False),
        ({**SHARED, **templates(OTHER_TEMPLATE)}, False),
    ],
    ids=[
        "last layer knows tasks",
        "no layer does",
        "every layer does",
        "half of them do",
        "unlike templates",
    ],
)
def test_a_row_gets_a_label_of_every_task(build: BuildWorld, blocks: dict[str, Any], one_pass: bool) -> None:
    world = build(**blocks)
    scorer, record = score_all(world)
    assert scorer.all_tasks is not None and scorer.all_tasks.one_pass is one_pass
    assert (scorer.judge.task_judges == {}) is one_pass, (
        "no task's adapters are merged where one pass is taken"
    )
    check_as_plain(world, read_published(world.scores_dir))
    assert record["spent"]["tokens_computed"] > 0 and record["spent"]["model_s"] > 0


def test_one_pass_reads_each_row_once_and_branches_at_the_layer_that_knows_tasks(build: BuildWorld) -> None:
    scorer = build(**SHARED).scorer()
    passed: dict[str, list[int]] = {"embed_tokens": [], "layers.2": [], "layers.3.mlp": []}
    for name, sizes in passed.items():
        module = scorer.judge.model.trunk.get_submodule(name)
        module.register_forward_hook(
            lambda _, __, output, sizes=sizes: sizes.append(output.shape[0] * output.shape[1])
        )
    # equal texts twice
    rows = [
        row | {"row_id": f"{row['row_id']}-{copy}"} for row in planted_rows("two", 30, 3) for copy in range(2)
    ]
    table = pa.Table.from_pylist(rows, ROW_SCHEMA)
    judge = AllTasksJudge(scorer.judge)
    judge.logits(judge.encode(table.slice(0, 4)), 128, lambda rows: None)  # tries two rows out
    before = judge.spent()
    for sizes in passed.values():
        sizes.clear()
    told: list[int] = []
    judge.logits(judge.encode(table), 128, lambda rows: told.extend(rows.tolist()))
    assert sorted(told) == list(range(60)), "each row is told once"
    embedded = passed["embed_tokens"]
    tokens = sum(len(scorer.judge.encoder.encode(table.slice(row, 1), "two")[0]) for row in range(60))
    assert len(embedded) > 1 and tokens / 2 <= sum(embedded) < 0.7 * tokens, "equal rows go through once"
    assert passed["layers.2"] == embedded and passed["layers.3.mlp"] == [2 * size for size in embedded]
    assert max(passed["layers.3.mlp"]) <= 128, "the budget holds where a pass is widest"
    spent = judge.spent()
    assert spent.tokens_in - before.tokens_in == 2 * tokens
    assert spent.tokens_computed - before.tokens_computed == pytest.approx(
        sum(embedded) * 5 / 4, abs=len(embedded)
    )


def test_the_layers_that_are_shared_decide(build: BuildWorld) -> None:
    assert AllTasksJudge(build(**SHARED).scorer().judge).cost_share == 5 / 8 <= ONE_PASS_SHARE
    assert AllTasksJudge(build(**EVERY_LAYER).scorer().judge).cost_share == 1


def other_answer(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
    return {task: model(ids_BS, mask_BS, torch.full((len(ids_BS),), task)) + 1.0 for task in range(2)}


def no_answer(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
    raise ValueError("whose rows cannot be told")


def fails_later(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, real: Any = all_task_logits) -> Any:
    """Not on the two rows tried."""
    return real(model, ids_BS, mask_BS) if len(ids_BS) == 2 else no_answer(model, ids_BS, mask_BS)


@pytest.mark.parametrize("instead", [other_answer, no_answer, fails_later])
def test_a_trunk_that_cannot_branch_is_found_out_and_judged_task_by_task(
    build: BuildWorld, monkeypatch: pytest.MonkeyPatch, instead: Callable[..., Any]
) -> None:
    world = build(**SHARED)
    monkeypatch.setattr(all_tasks, "all_task_logits", instead)
    scorer, _ = score_all(world)
    assert scorer.all_tasks is not None and scorer.all_tasks.one_pass is False
    check_as_plain(world, read_published(world.scores_dir))


def test_a_bfloat16_model_agrees_with_itself_and_takes_one_pass(build: BuildWorld, deep_llama: Path) -> None:
    scorer, _ = score_all(build(**SHARED, backbone={"source": str(deep_llama), "dtype": "bfloat16"}))
    assert scorer.all_tasks is not None and scorer.all_tasks.one_pass is True


def test_plain_labels_and_those_of_all_tasks_are_partitions_of_their_own(build: BuildWorld) -> None:
    world = build(**SHARED)
    plain, of_all = world.units(), world.units(all_tasks=True)
    assert not {unit.partition for unit in plain} & {unit.partition for unit in of_all}
    score_all(world)
    assert world.units() == plain and world.units(all_tasks=True) == []
    scorer = world.scorer()
    assert [scorer.outcome(unit).labels for unit in plain] == [ROWS] * 3
    for manifest in read_manifests(world.scores_dir):
        if manifest["partition"] in {unit.partition for unit in plain}:
            assert "tasks" not in manifest and "profiles" not in manifest and manifest["profile"]["us"]
        else:
            assert (
                manifest["tasks"] == ["two", "three"]
                and set(manifest["profiles"]) == {"two", "three"}
                and "profile" not in manifest
            )


def test_a_reader_that_knows_nothing_of_tasks_joins_labels_on_row_and_task(build: BuildWorld) -> None:
    world = build(**SHARED)
    score_all(world)
    files = [
        str(world.scores_dir / file["path"])
        for manifest in read_manifests(world.scores_dir)
        for file in manifest["files"]
    ]
    labels = ds.dataset(files).to_table()
    assert labels.num_rows == 2 * all_inputs(world).num_rows and labels.sort_by("row_id").equals(
        read_run(world.scores_dir).sort_by("row_id")
    )


def test_bad_rows_are_errors_once_and_the_record_counts_each_task(build: BuildWorld) -> None:
    world = build(**SHARED)
    rows = planted_rows("three", ROWS, 9, labelled=False)
    rows[1]["query"] = " "
    write_rows(rows, world.root / "to_score" / "task=three" / "part-9-bad.parquet")
    write_rows([], world.root / "to_score" / "task=three" / "part-8-empty.parquet")
    _, record = score_all(world)
    [error] = read_errors(world.scores_dir).to_pylist()
    assert (error["row_id"], error["task"], error["reason"]) == ("three-9-1", "three", "query is blank")
    assert [record[name] for name in ("rows_in", "labels", "errors", "rows_scored", "all_tasks")] == [
        16,
        30,
        1,
        15,
        True,
    ]
    assert record["tasks"] == {task: {"rows_in": 16, "labels": 15, "errors": 1} for task in ("two", "three")}
    assert {task: sum(profile["us"]["labels"]) for task, profile in record["profiles"].items()} == {
        "two": 15,
        "three": 15,
    }
    assert (
        len(record["profiles"]["two"]["us"]["labels"]) == 2
        and len(record["profiles"]["three"]["us"]["labels"]) == 3
    )


def test_a_manifest_with_labels_of_too_few_tasks_ends_the_run(build: BuildWorld) -> None:
    world = build(**SHARED)
    units = world.units(all_tasks=True)
    score_all(world)
    path = world.scores_dir / "manifests" / f"{units[0].partition}.json"
    write_json(path, read_json(path) | {"rows": ROWS})
    with pytest.raises(DamagedInputError, match="has other rows than labels and errors together"):
        run_record(
            world.scores_dir,
            ScoringRun("r", FetchedVersion("1", world.root / "bundle", world.sha256), 0.0, None),
            units,
            [],
        )


def test_scores_of_all_tasks_are_held_against_the_last_run_of_that_kind(build: BuildWorld) -> None:
    world = build(**SHARED)
    write_rows(
        planted_rows("two", 120, 11, labelled=False),
        world.root / "to_score" / "task=two" / "part-6-many.parquet",
    )
    _, first = score_all(world, "20260131-a")
    assert first["drift"]["against_last_run"] == []
    scorer, units = world.scorer(), world.units()
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    plain = run_record(
        world.scores_dir,
        ScoringRun("20260131-b", champion, 0.0, None),
        units,
        [scorer.outcome(unit) for unit in units],
    )
    put_record(world.scores_dir, plain)
    assert plain["drift"]["against_last_run"] == [] and plain["all_tasks"] is False, (
        "there is no plain run before"
    )
    write_rows(
        planted_rows("two", 130, 12, labelled=False),
        world.root / "to_score" / "task=two" / "part-7-more.parquet",
    )
    _, third = score_all(world, "20260131-c")
    assert {(one["task"], one["rows"]) for one in third["drift"]["against_last_run"]} == {
        ("two", 130),
        ("three", 130),
    }


def test_a_pair_that_was_judged_for_all_tasks_is_not_judged_again_and_keeps_its_scores(
    build: BuildWorld,
) -> None:
    world = build(**SHARED)
    score_all(world, "20260131-a")
    before = {
        (row["input_hash"], row["task"]): row["probability"]
        for row in read_published(world.scores_dir).to_pylist()
    }
    rows = [*planted_rows("two", ROWS, 0, labelled=False), *planted_rows("two", 3, 77, labelled=False)][::-1]
    renamed = [row | {"row_id": f"again-{number}"} for number, row in enumerate(rows)]
    # of another task's folder
    write_rows(renamed, world.root / "to_score" / "task=three" / "part-7-again.parquet")
    _, record = score_all(world, "20260201-a")
    assert (record["rows_scored"], record["rows_reused"], record["labels"]) == (
        ROWS + 3,
        ROWS,
        2 * (ROWS + 3),
    )
    again = [
        row for row in read_run(world.scores_dir).to_pylist() if (row["input_hash"], row["task"]) in before
    ]
    assert len(again) == 2 * ROWS and all(
        row["probability"] == before[row["input_hash"], row["task"]] for row in again
    )


def test_a_row_that_one_task_knows_is_judged_for_the_others_and_keeps_what_is_known(
    build: BuildWorld,
) -> None:
    world = build(**SHARED)
    scorer, units = world.scorer(), world.units()
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    put_record(
        world.scores_dir,
        run_record(
            world.scores_dir,
            ScoringRun("20260131-a", champion, 0.0, None),
            units,
            [scorer.outcome(unit) for unit in units],
        ),
    )
    before = {row["row_id"]: row["probability"] for row in read_run(world.scores_dir).to_pylist()}
    _, record = score_all(world, "20260131-b")
    assert record["rows_reused"] == 0
    kept = {
        row["row_id"]: row["probability"]
        for row in read_run(world.scores_dir).to_pylist()
        if row["row_id"].startswith(row["task"])
    }
    assert kept == before, "to the bit"
    check_as_plain(world, read_run(world.scores_dir))


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
    scorer.settings["batch_tokens"] = 64
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
