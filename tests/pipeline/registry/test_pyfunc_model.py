"""Registered model on data frames: one row per pair, in order, or an error that names the problem."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.config.loading import build_config
from pipeline.inference.calibration import Calibration, Thresholds
from pipeline.inference.predictor import build_predictor, load_predictor
from pipeline.registry.pyfunc_model import (
    OUTPUTS,
    ServedModel,
    check_frame,
    contract_rows,
    signature,
)
from pipeline.schema import ROW_SCHEMA, TEXT_COLUMNS
from tests.support.bundles import write_trained_bundle
from tests.support.planted import planted_config, planted_rows

LABELS = {"two": ["bad", "good"], "three": ["bad", "fair", "good"]}


@pytest.fixture(scope="module")
def bundle_dir(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    config = build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test")
    predictor = build_predictor(config)
    predictor.calibration.update(
        two=Calibration(relevant_at=0.5, irrelevant_below=0.5), three=Calibration(temperature=2.0)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in predictor.model.trainable_state().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("pyfunc") / "bundle"
    write_trained_bundle(folder, predictor, config)
    return folder


@pytest.fixture(scope="module")
def model(bundle_dir: Path) -> ServedModel:
    return ServedModel(*load_predictor(bundle_dir))


def pairs(count: int = 24) -> pd.DataFrame:
    """Pairs of both tasks in turn, under an index of its own order."""
    rows = {task: planted_rows(task, count, seed=4) for task in LABELS}
    mixed = [{"task": task, **rows[task][n]} for n in range(count // 2) for task in LABELS]
    index = np.random.default_rng(0).permutation(count) * 10
    return pd.DataFrame(mixed, index=index)[["task", *TEXT_COLUMNS]]


def test_mixed_tasks_keep_the_order_of_pairs(model: ServedModel) -> None:
    frame = pairs()
    scored = model.predict(frame)
    assert scored.index.tolist() == frame.index.tolist()
    assert scored.columns.tolist() == [name for name, _ in OUTPUTS]
    alone = pd.concat([model.predict(frame.iloc[[n]]) for n in range(len(frame))])
    assert scored["probability"].nunique() > 20
    assert scored["probability"].tolist() == pytest.approx(alone["probability"].tolist(), abs=1e-5)
    assert scored["label_name"].tolist() == alone["label_name"].tolist()


def test_label_decision_and_probability_agree(model: ServedModel) -> None:
    frame = pairs()
    scored = model.predict(frame)
    for task, (_, row) in zip(frame["task"], scored.iterrows(), strict=True):
        assert row["label_name"] == LABELS[task][row["label"]]
        assert 0 <= row["probability"] <= 1 and 0 <= row["expected_grade"] <= len(LABELS[task]) - 1
        if task == "two":
            assert row["decision"] == ("relevant" if row["probability"] >= 0.5 else "irrelevant")
            assert row["expected_grade"] == pytest.approx(row["probability"])
        else:
            assert row["decision"] == "abstain"
    assert set(scored["decision"]) == {"relevant", "irrelevant", "abstain"}


def test_missing_optional_texts_are_null(model: ServedModel) -> None:
    frame = pairs()
    bare = frame[["ad_title", "query", "task"]]
    assert model.predict(bare).equals(model.predict(frame))
    nan = frame.assign(ad_keyword=np.nan, landing_page=None)
    assert model.predict(nan).equals(model.predict(frame))


def test_extra_columns_are_ignored(model: ServedModel) -> None:
    frame = pairs()
    assert model.predict(frame.assign(row_id="x", label=7, colour="red")).equals(model.predict(frame))


def test_thresholds_of_a_market_are_used(model: ServedModel) -> None:
    frame, predictor = pairs(), model.predictor
    never = Thresholds(relevant_at=None, irrelevant_below=None)
    of_markets = {
        name: calibration.model_copy(update={"markets": {"de": never}})
        for name, calibration in predictor.calibration.items()
    }
    model.predictor = replace(predictor, calibration=of_markets)
    try:
        decisions = model.predict(frame.assign(market=["de", "de", None, "us"] * 6))["decision"].tolist()
    finally:
        model.predictor = predictor
    anywhere = model.predict(frame)["decision"].tolist()
    of_de = [number % 4 < 2 for number in range(len(frame))]
    assert decisions == [
        "abstain" if there else decision for there, decision in zip(of_de, anywhere, strict=True)
    ]
    assert {decision for there, decision in zip(of_de, anywhere, strict=True) if there} > {"abstain"}


def test_empty_frame_gives_empty_columns(model: ServedModel) -> None:
    scored = model.predict(pairs().iloc[:0])
    assert len(scored) == 0 and scored.columns.tolist() == [name for name, _ in OUTPUTS]


def test_unknown_task_is_refused_with_the_known_ones(model: ServedModel) -> None:
    with pytest.raises(ValueError, match="task 'tow' in the input is not configured; configured: two, three"):
        model.predict(pairs().assign(task="tow"))


WRONG_FRAMES: list[tuple[Any, str]] = [
    (
        lambda f: f.drop(columns="query"),
        "the input lacks query; it needs task, query, ad_title and takes query, ad_title, ad_description",
    ),
    (lambda f: f.drop(columns=["task", "ad_title"]), "the input lacks task, ad_title;"),
    (lambda f: f.assign(query=[None, *f["query"][1:]]), "query must not be null; leave such rows out"),
    (lambda f: f.assign(task=np.nan, ad_title=None), "task, ad_title must not be null"),
    (lambda f: f.assign(query="\ufe0f"), "query must hold a visible character; leave such rows out"),
    (lambda f: f.set_index(np.zeros(len(f), int)), r"index repeats; call reset_index\(drop=True\) first"),
]


@pytest.mark.parametrize(
    ("change", "message"), WRONG_FRAMES, ids=[message[:20] for _, message in WRONG_FRAMES]
)
def test_invalid_frame_is_refused_with_its_reason(model: ServedModel, change: Any, message: str) -> None:
    check_frame(pairs())
    with pytest.raises(ValueError, match=message):
        check_frame(change(pairs()))
    with pytest.raises(ValueError, match=message):
        model.predict(change(pairs()))


def test_frame_becomes_contract_rows_without_labels() -> None:
    table = contract_rows(
        pd.DataFrame({"query": ["a", "b"], "ad_title": ["t", 7], "ad_keyword": [None, "k"]})
    )
    assert table.schema.names == ROW_SCHEMA.names and table.schema.types == ROW_SCHEMA.types
    assert table.column("ad_title").to_pylist() == ["t", "7"]
    assert table.column("ad_keyword").to_pylist() == [None, "k"]
    assert table.column("landing_page").null_count == table.column("label").null_count == 2


def test_signature_and_check_frame_require_equal_columns() -> None:
    inputs = {column.name: column.required for column in signature().inputs}
    assert inputs == {
        name: name in ("task", "query", "ad_title") for name in ("task", *TEXT_COLUMNS, "market")
    }
    assert [column.name for column in signature().outputs] == [name for name, _ in OUTPUTS]
