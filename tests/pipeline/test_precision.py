"""Int8 is used where it is within tolerance and faster, told either way, chosen once; labels of the two precisions never mix."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from planted import planted_config, planted_rows, write_rows
from scoring_world import ROWS, World
from tiny import write_tiny_llama

from models import quantize
from pipeline import int8_measure
from pipeline.commit import put_record, read_manifests, read_published
from pipeline.config import build_config
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.files import write_json
from pipeline.int8_measure import compare, first_rows, measure
from pipeline.judge import load_judge
from pipeline.precision import MAX_CHANGED, MIN_SPEED, NATIVE, PrecisionChoice, choice_lines, keep_choice, read_choice, record_key, refusal
from pipeline.schema import ROW_SCHEMA
from pipeline.score import actor_settings
from pipeline.score_cache import cached_files
from pipeline.score_inputs import find_inputs
from pipeline.score_reference import build_reference
from pipeline.score_run import run_record
from pipeline.scores import judge_rows

INT8 = PrecisionChoice("int8")


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With matrices that are wide enough for int8."""
    return write_tiny_llama(tmp_path_factory.mktemp("wide") / "llama", width=quantize.MIN_WIDTH)


@pytest.fixture(autouse=True)
def processor_with_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this one has."""
    monkeypatch.setattr(int8_measure, "product_speed", lambda dtype: 1.5)


def test_a_processor_without_int8_instructions_is_told_before_any_row_is_judged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_measure, "product_speed", lambda dtype: 0.03)
    found = measure(settings_of(world), world.config.to_score_place, world.config.tasks)
    assert found["failed"] == "a large product in int8 is 0.03 times as fast as a native one on this processor" and not found["tasks"]


def test_the_speed_of_a_product_is_that_of_the_fastest_of_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "PRODUCT_WIDTH", 8)
    ticks = iter([0, 3, 0, 2, 0, 4, 0, 9, 0, 8, 0, 4, 0, 5, 0, 9, 0, 9, 0, 9])
    monkeypatch.setattr(quantize, "ENOUGH_S", 1e9)
    monkeypatch.setattr(quantize.time, "perf_counter", lambda: next(ticks))
    assert quantize.product_speed(torch.float32) == 2 / 4


@pytest.fixture
def world(tmp_path: Path, wide_llama: Path) -> World:
    return World(tmp_path, wide_llama, scoring={"int8": True})


def measured(mean: float = 0.003, labels: int = 1, decisions: int = 0, int8_s: float = 0.8, **others: Any) -> dict[str, Any]:
    of_task = {"rows": 256, "mean": mean, "largest": 0.041, "labels": labels, "decisions": decisions, "native_s": 1.0, "int8_s": int8_s}
    return {"tasks": {"two": of_task}, "canary_moves": 0.004, "matrices": 14, "failed": "", **others}


REFUSED = [
    ({"mean": 0.0101}, "two's probabilities move by 0.0101 on average, more than scoring.int8_tolerance 0.01"),
    ({"mean": float("nan")}, "two's probabilities move by nan"),
    ({"labels": 6}, "6 of 256 labels of two are other, more than 2%"),
    ({"decisions": 6}, "6 of 256 decisions of two are other, more than 2%"),
    ({"int8_s": 0.97}, "it is 1.03 times as fast here, and 1.05 was asked for"),
    ({"int8_s": 1.3}, "it is 0.77 times as fast here"),
    ({"matrices": 0}, "no matrix of this model can be int8"),
    ({"failed": "two: RuntimeError: no kernel"}, "it could not be measured: two: RuntimeError: no kernel"),
    ({"tasks": {}}, "there was no valid row to measure it on"),
]


@pytest.mark.parametrize(("others", "told"), REFUSED, ids=[told[:40] for _, told in REFUSED])
def test_int8_is_refused_with_the_reason(tmp_path: Path, others: dict[str, Any], told: str) -> None:
    choice = keep_choice(tmp_path, "b" * 64, 0.01, measured(**others))
    assert (choice.precision, choice.ways) == ("native", ())
    line = choice_lines(choice, "s3://ads/labels")[-1]
    assert line.startswith(f"int8: not used, labels are of the native precision: {told}")
    assert line.endswith(f"This stands in s3://ads/labels/{record_key('b' * 64, 0.01)}")


def test_int8_within_every_limit_is_used_and_told_with_its_figures(tmp_path: Path) -> None:
    most = int(256 * MAX_CHANGED)
    assert not refusal(measured(mean=0.01, labels=most, decisions=most, int8_s=1 / MIN_SPEED), 0.01)
    choice = keep_choice(tmp_path, "b" * 64, 0.01, measured())
    assert (choice.precision, choice.ways, choice.canary_moves) == ("int8", ("int8",), 0.004)
    figures = "two's probabilities move by 0.0030 on average, 0.0410 at most; 1 labels and 0 decisions of 256 are other; 1.25 times as fast"
    assert choice_lines(choice, "here") == [f"int8: {figures}", "int8: used, 1.25 times as fast over all tasks"]
    assert choice.facts()["precision"] == "int8" and choice.facts()["int8"]["tasks"]["two"]["mean"] == 0.003
    assert NATIVE.facts() == {"precision": "native"} and choice_lines(NATIVE, "here") == []


def test_a_choice_stands_whatever_is_measured_later_and_another_model_or_tolerance_is_another_question(tmp_path: Path) -> None:
    assert read_choice(tmp_path, "b" * 64, 0.01) is None
    assert keep_choice(tmp_path, "b" * 64, 0.01, measured()).precision == "int8"
    assert keep_choice(tmp_path, "b" * 64, 0.01, measured(mean=0.5)).precision == "int8"
    again = read_choice(tmp_path, "b" * 64, 0.01)
    assert again is not None and again.precision == "int8"
    assert read_choice(tmp_path, "b" * 64, 0.02) is None and read_choice(tmp_path, "c" * 64, 0.01) is None
    (tmp_path / record_key("b" * 64, 0.01)).write_text("{")
    with pytest.raises(DamagedInputError, match="delete it and score again"):
        read_choice(tmp_path, "b" * 64, 0.01)


def test_int8_on_a_gpu_is_refused_where_the_config_is_read(tmp_path: Path) -> None:
    plain = planted_config(tmp_path, "nowhere", scoring={"int8": True, "use_gpu": True})
    with pytest.raises(ConfigError, match=r"scoring\.int8 is for CPUs, .* set scoring\.use_gpu to false"):
        build_config(plain, "test")
    with pytest.raises(ConfigError, match=r"scoring\.int8_tolerance"):
        build_config({**plain, "scoring": {"int8_tolerance": 0}}, "test")


def settings_of(world: World) -> dict[str, Any]:
    world.scorer()
    return actor_settings(world.config, world.version, world.root / "attempts")


def test_measuring_says_what_int8_does_to_the_rows_to_score(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_measure, "SAMPLE_ROWS", ROWS + 2)
    found = measure(settings_of(world), world.config.to_score_place, world.config.tasks)
    (task,) = found["tasks"].values()
    assert task["rows"] == ROWS + 2 and not found["failed"] and found["matrices"] > 0
    assert 0 < task["mean"] <= task["largest"] < 0.1 and task["native_s"] > 0 < task["int8_s"]
    native, _ = load_judge(world.root / "bundle")
    (two, _) = world.config.tasks
    rows = first_rows(find_inputs(world.config.to_score_place, (two,))["two"], two)
    sides = [judge_rows(judge, rows, two, 4096)[:, 1] for judge in (native, native.with_precision("int8"))]
    assert task["mean"] == pytest.approx(np.abs(sides[0] - sides[1]).mean(), rel=1e-3)


def test_rows_that_cannot_be_scored_are_not_measured_on(world: World) -> None:
    (two, _) = world.config.tasks
    folder = world.root / "to_score" / "task=two"
    (folder / "part-00-torn.parquet").write_bytes(b"PAR1")
    rows = planted_rows("two", 3, 50, labelled=False)
    rows[0]["query"] = " "
    write_rows(rows, folder / "part-01-blank.parquet")
    table = first_rows(find_inputs(world.config.to_score_place, (two,))["two"], two)
    assert table.column("row_id").to_pylist()[0] == "two-0-0" and " " not in table.column("query").to_pylist()
    assert table.num_rows == 2 * ROWS + 2


def test_a_place_that_does_not_answer_ends_the_measuring_and_nothing_is_chosen_without_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Any) -> Any:
        raise RetryableError("the store is away")

    settings = settings_of(world)
    monkeypatch.setattr(int8_measure, "read_unit", away)
    with pytest.raises(RetryableError, match="the store is away"):
        measure(settings, world.config.to_score_place, world.config.tasks)


def test_a_model_that_int8_breaks_is_told_as_not_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such product here")

    monkeypatch.setattr(quantize.Int8Linear, "_product", broken)
    found = measure(settings_of(world), world.config.to_score_place, world.config.tasks)
    assert "RuntimeError: no such product here" in found["failed"] and refusal(found, 0.01)


def test_answers_that_int8_makes_infinite_are_no_measurement(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    native, _ = load_judge(world.root / "bundle")
    int8, (two, _) = native.with_precision("int8"), world.config.tasks
    monkeypatch.setattr(quantize.Int8Linear, "_product", lambda self, x_ND: x_ND.new_full((len(x_ND), self.out_features), float("inf")))
    with pytest.raises(ValueError, match="in int8 the model has no finite answer"):
        compare(native, int8, pa.Table.from_pylist(planted_rows("two", 3, 1), ROW_SCHEMA), two, 4096)


def score(world: World, choice: PrecisionChoice, run: str) -> tuple[int, int]:
    """(units scored, labels reused) of a run."""
    scorer, units = world.scorer(choice), world.units(choice=choice)
    outcomes = [scorer.outcome(unit) for unit in units]
    assert not any(one.error for one in outcomes)
    put_record(world.scores_dir, run_record(world.scores_dir, run, world.version, units, outcomes, 0.0, None))
    return len(outcomes), sum(one.reused for one in outcomes)


def test_labels_of_the_two_precisions_are_partitions_apart_and_none_is_reused_for_the_other(world: World) -> None:
    assert score(world, NATIVE, "20260101-a") == (2, 0)
    assert set(cached_files(world.scores_dir, world.sha256)) == {"two"} and cached_files(world.scores_dir, world.sha256, "int8") == {}
    assert score(world, INT8, "20260102-a") == (2, 0)
    native, int8 = (cached_files(world.scores_dir, world.sha256, precision)["two"] for precision in ("native", "int8"))
    assert len(native) == len(int8) == 2 and not {file["path"] for file in native} & {file["path"] for file in int8}
    of_precision = {one["partition"]: one.get("precision") for one in read_manifests(world.scores_dir)}
    assert sorted(map(str, of_precision.values())) == ["None", "None", "int8", "int8"]
    table = read_published(world.scores_dir)
    assert table.num_rows == 4 * ROWS and len(set(table.column("probability").to_pylist())) > 2 * ROWS, "both sides say the same to the bit"
    assert (world.units(), world.units(choice=INT8)) == ([], []), "a rerun of either had something to do"


def with_reference(world: World, shift: float) -> None:
    """Canary rows whose probabilities were so much higher where the version was evaluated."""
    judge, _ = load_judge(world.root / "bundle")
    tables = {task.name: pa.Table.from_pylist(planted_rows(task.name, 8, 3), ROW_SCHEMA) for task in judge.tasks}
    said = {task.name: judge_rows(judge, tables[task.name], task, 4096) for task in judge.tasks}
    reference = build_reference(judge, world.sha256, tables, said, 4096)
    for canary in reference["canaries"].values():
        canary["probability"] = [one + shift for one in canary["probability"]]
    write_json(world.version.reference_path, reference)


def test_canary_rows_in_int8_may_differ_by_what_int8_moved_them_by_and_no_more(world: World) -> None:
    with_reference(world, 0.0)
    moves = measure(settings_of(world), world.config.to_score_place, world.config.tasks)["canary_moves"]
    assert 0 < moves < 0.1
    world.config = build_config({**world.plain, "scoring": {**world.plain["scoring"], "canary_tolerance": moves / 4}}, "test")
    assert not world.scorer().refusal and not world.scorer(PrecisionChoice("int8", moves)).refusal
    refused = world.scorer(PrecisionChoice("int8", moves / 2)).refusal
    assert "canary rows are judged otherwise here" in refused and f"and the {moves / 2:.4f} of int8" in refused
    with_reference(world, 0.3)
    assert world.scorer(PrecisionChoice("int8", moves)).refusal


def test_a_task_without_rows_is_measured_on_its_canary_rows(world: World) -> None:
    with_reference(world, 0.0)
    found = measure(settings_of(world), world.config.to_score_place, world.config.tasks)
    assert {name: task["rows"] for name, task in found["tasks"].items()} == {"two": 2 * ROWS + 8, "three": 8}
