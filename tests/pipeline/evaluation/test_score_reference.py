"""Canary rows distinguish models, and nothing that is not a number passes for no difference."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.serialization.bundle import write_bundle
from pipeline.config.loading import build_config
from pipeline.errors import DamagedInputError
from pipeline.evaluation import score_reference
from pipeline.evaluation.score_reference import (
    ScoreReference,
    build_reference,
    canary_difference,
    read_reference,
)
from pipeline.inference.predictor import Predictor, build_predictor
from pipeline.inference.probabilities import predict_probabilities
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_config, planted_rows


def build(tiny_llama: Path) -> Predictor:
    return build_predictor(build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test"))


@pytest.fixture(scope="module")
def predictor(tiny_llama: Path) -> Predictor:
    return build(tiny_llama)


@pytest.fixture(scope="module")
def reference(predictor: Predictor) -> ScoreReference:
    tables = {task: pa.Table.from_pylist(planted_rows(task, 20, 1), ROW_SCHEMA) for task in ("two", "three")}
    probabilities = {
        task.name: predict_probabilities(predictor, tables[task.name], task, 4_096)
        for task in predictor.tasks
    }
    return build_reference(predictor, tables, probabilities, 4_096)


def write_reference(folder: Path, fields: dict[str, Any]) -> tuple[Path, str]:
    """Write a bundle of a reference alone; return its folder and digest."""
    (folder / "tokenizer").mkdir(exist_ok=True)
    return folder / "bundle", write_bundle(folder / "bundle", {}, {}, folder / "tokenizer", fields)


def test_canary_rows_distinguish_models(
    predictor: Predictor, reference: ScoreReference, tiny_llama: Path, tmp_path: Path
) -> None:
    read = read_reference(*write_reference(tmp_path, reference.to_json()))
    assert read is not None and read.to_json() == reference.to_json()
    assert canary_difference(predictor, read, 4_096) < 1e-6
    other = build(tiny_llama)
    with torch.no_grad():
        other.model.heads.weight_KD.mul_(1.5)
    assert canary_difference(other, read, 4_096) > 1e-3


def test_altered_reference_is_refused_by_the_bundles_digest(
    reference: ScoreReference, tmp_path: Path
) -> None:
    bundle_dir, sha256 = write_reference(tmp_path, reference.to_json())
    fields = reference.to_json()
    fields["canaries"]["two"]["probability"][0] = 0.5
    write_reference(tmp_path, fields)
    with pytest.raises(DamagedInputError, match="the registry recorded"):
        read_reference(bundle_dir, sha256)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_canary_that_is_not_finite_differs_without_bound(
    predictor: Predictor, reference: ScoreReference, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = copy.deepcopy(reference)
    wrong.canaries["two"].probability_N[3] = number
    assert canary_difference(predictor, wrong, 4_096) == math.inf
    computed = score_reference.relevance_probability

    def spoil(*given: Any) -> np.ndarray:
        probability_N = computed(*given)
        probability_N[-1] = number
        return probability_N

    monkeypatch.setattr(score_reference, "relevance_probability", spoil)
    assert canary_difference(predictor, reference, 4_096) == math.inf


WRONG_FORMS: list[Callable[[dict[str, Any]], object]] = [
    lambda fields: fields.pop("canaries"),
    lambda fields: fields.update(canaries=[]),
    lambda fields: fields["canaries"]["two"]["probability"].pop(),
    lambda fields: fields["canaries"]["two"].update(rows=[], probability=[]),
    lambda fields: fields["canaries"]["two"]["rows"].__setitem__(0, 5),
    lambda fields: fields["canaries"]["two"]["probability"].__setitem__(0, None),
    lambda fields: fields["canaries"]["two"]["probability"].__setitem__(0, "x"),
    lambda fields: fields["profiles"].update(two=[]),
]


def test_reference_of_another_form_is_damaged_input(reference: ScoreReference, tmp_path: Path) -> None:
    for number, spoil in enumerate(WRONG_FORMS):
        fields = reference.to_json()
        spoil(fields)
        with pytest.raises(DamagedInputError, match=r"reference\.json is of another form"):
            read_reference(*write_reference(tmp_path, fields))
            pytest.fail(f"form {number} was read")
