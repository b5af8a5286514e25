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

from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.loading import build_config
from pipeline.errors import DamagedInputError
from pipeline.evaluation import score_reference
from pipeline.evaluation.score_reference import (
    ScoreReference,
    canary_difference,
    check_canaries,
    read_reference,
)
from pipeline.inference.predictor import Predictor, build_predictor, bundle_description
from pipeline.schema import ROW_SCHEMA
from tests.support.bundles import reference_of
from tests.support.planted import TRAINING, planted_config, planted_rows


def build(tiny_llama: Path) -> Predictor:
    return build_predictor(build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test"))


@pytest.fixture(scope="module")
def predictor(tiny_llama: Path) -> Predictor:
    return build(tiny_llama)


@pytest.fixture(scope="module")
def reference(predictor: Predictor) -> ScoreReference:
    tables = {task: pa.Table.from_pylist(planted_rows(task, 20, 1), ROW_SCHEMA) for task in ("two", "three")}
    return reference_of(predictor, tables)


@pytest.fixture
def write_reference(predictor: Predictor, tmp_path: Path) -> Callable[[Any], tuple[Path, str]]:
    """A function that writes a bundle with a reference, and returns its folder and digest."""
    config = build_config(planted_config(Path("/nowhere"), str(predictor.backbone.folder)), "test")
    description = bundle_description(predictor, config, TRAINING)

    def write(fields: dict[str, Any] | None) -> tuple[Path, str]:
        folder = tmp_path / "bundle"
        return folder, write_bundle(folder, description, {}, predictor.backbone.folder, fields)

    return write


def test_canary_rows_distinguish_models(
    predictor: Predictor, reference: ScoreReference, tiny_llama: Path, write_reference: Any
) -> None:
    read = read_reference(*write_reference(reference.to_json()))
    assert read.to_json() == reference.to_json()
    assert canary_difference(predictor, read, 4_096) < 1e-6
    other = build(tiny_llama)
    with torch.no_grad():
        other.model.heads.weight_KD.mul_(1.5)
    assert canary_difference(other, read, 4_096) > 1e-3


def test_altered_reference_is_refused_by_the_bundles_digest(
    reference: ScoreReference, write_reference: Any
) -> None:
    bundle_dir, sha256 = write_reference(reference.to_json())
    fields = reference.to_json()
    fields["canaries"]["two"]["probability"][0] = 0.5
    write_reference(fields)
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
    # values that no evaluation writes
    lambda fields: fields["canaries"]["two"]["rows"][0].update(label=10**200),
    lambda fields: fields["canaries"]["two"]["rows"][0].pop("query"),
    lambda fields: fields["canaries"]["two"]["probability"].__setitem__(0, 7),
    lambda fields: fields["canaries"]["two"]["probability"].__setitem__(0, "0.5"),
    lambda fields: fields["canaries"]["two"]["probability"].__setitem__(0, True),
    lambda fields: fields["profiles"]["two"]["us"]["labels"].__setitem__(0, -1),
    lambda fields: fields["profiles"]["two"]["us"]["labels"].__setitem__(0, 10**200),
    lambda fields: fields["profiles"]["two"]["us"]["labels"].append(0),
    lambda fields: fields["profiles"]["two"]["us"]["labels"].__setitem__(0, 1_000),
    lambda fields: fields["profiles"]["two"]["us"]["probability"].pop(),
    # tasks
    lambda fields: fields["canaries"].clear(),
    lambda fields: fields["canaries"].pop("two"),
    lambda fields: fields["canaries"].update(four=fields["canaries"]["two"]),
    lambda fields: fields["profiles"].update(four=fields["profiles"]["two"]),
]


def test_reference_of_another_form_is_damaged_input(reference: ScoreReference, write_reference: Any) -> None:
    for number, spoil in enumerate(WRONG_FORMS):
        fields = reference.to_json()
        spoil(fields)
        with pytest.raises(DamagedInputError, match=r"reference\.json is of another form") as caught:
            read_reference(*write_reference(fields))
            pytest.fail(f"form {number} was read")
        assert "\n" not in str(caught.value)


def test_bundle_without_canaries_is_refused(predictor: Predictor, write_reference: Any) -> None:
    bundle = read_bundle(write_reference(None)[0])
    with pytest.raises(DamagedInputError, match=r"reference\.json missing.*; evaluate and register"):
        check_canaries(predictor, bundle, 4_096, 1.0)


def test_task_without_test_rows_has_canaries(predictor: Predictor, write_reference: Any) -> None:
    table = pa.Table.from_pylist(planted_rows("two", 20, 1), ROW_SCHEMA)
    built = reference_of(predictor, {"two": table})
    read = read_reference(*write_reference(built.to_json()))
    assert read.canaries.keys() == {"two", "three"} and read.profiles.keys() == {"two"}
    assert canary_difference(predictor, read, 4_096) < 1e-6
