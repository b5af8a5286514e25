"""Bundles give back a predictor bit for bit or are refused; logits depend on the row alone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from models.files import bytes_sha256
from models.folder_checks import BackboneUnavailableError
from models.serialization.bundle import encode_json
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.encoding.batches import EncodedRows
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.calibration import Calibration
from pipeline.inference.predictor import Predictor, build_predictor, load_predictor
from pipeline.schema import ROW_SCHEMA
from tests.support.bundles import write_trained_bundle
from tests.support.encoded_lists import encoded_lists
from tests.support.planted import TRAINING, planted_config, planted_rows

WORDY = {
    "name": "two",
    "labels": ["bad", "good"],
    "relevant_from": 1,
    "template": "Is this a good ad? {ad_title} for {query}",
}
CALIBRATION = {
    "two": Calibration(temperature=1.7, relevant_at=0.8, irrelevant_below=1 / 3),
    "three": Calibration(relevant_at=0.1),
}


@pytest.fixture(scope="module")
def backbone_dir(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of our own."""
    torch.set_num_threads(1)
    return Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("backbone") / "llama"))


@pytest.fixture(scope="module")
def config(backbone_dir: Path) -> RunConfig:
    return build_config(planted_config(Path("/nowhere"), str(backbone_dir)), "test")


@pytest.fixture(scope="module")
def predictor(config: RunConfig) -> Predictor:
    """A calibrated predictor whose trained tensors are random."""
    fresh = build_predictor(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fresh.model.trainable_state().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return replace(fresh, calibration=CALIBRATION)


@pytest.fixture(scope="module")
def encoded(predictor: Predictor) -> EncodedRows:
    """Rows of both tasks, of many lengths."""
    return predictor.encode({task: rows_of(task) for task in ("two", "three")})


def rows_of(task: str, count: int = 30) -> pa.Table:
    rows = planted_rows(task, count, seed=3)
    for number, row in enumerate(rows):
        row["ad_title"] *= 1 + number % 4
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


@pytest.fixture
def bundle_dir(tmp_path: Path, predictor: Predictor, config: RunConfig) -> Path:
    write_trained_bundle(tmp_path / "bundle", predictor, config)
    return tmp_path / "bundle"


def test_loaded_bundle_gives_equal_logits(
    bundle_dir: Path, predictor: Predictor, encoded: EncodedRows
) -> None:
    loaded, bundle = load_predictor(bundle_dir)
    again = loaded.encode({task: rows_of(task) for task in ("two", "three")})
    assert all(np.array_equal(again.ids_of(row), encoded.ids_of(row)) for row in range(len(encoded)))
    assert np.array_equal(loaded.logits(again, 512), predictor.logits(encoded, 512))
    assert (loaded.tasks, loaded.calibration, loaded.encoder.config) == (
        predictor.tasks,
        CALIBRATION,
        predictor.encoder.config,
    )
    assert not loaded.model.training
    assert bundle.description["training"] == TRAINING.model_dump()


def test_bundle_records_how_its_base_is_quantised(
    tmp_path: Path, predictor: Predictor, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = config.model_copy(update={"backbone": replace(config.backbone, quantization="nf4")})
    write_trained_bundle(tmp_path / "bundle", predictor, quantised)
    requested: list[Any] = []

    def refuse(backbone: Any) -> None:
        requested.append(backbone.quantization)
        raise BackboneUnavailableError("not loaded")

    monkeypatch.setattr("pipeline.inference.predictor.load_backbone", refuse)
    with pytest.raises(ConfigError, match="not loaded"):
        load_predictor(tmp_path / "bundle")
    assert requested == ["nf4"]


@pytest.mark.parametrize("quantization", ("nf4", "int8"))
def test_quantised_bundle_gives_equal_logits(
    tmp_path: Path, config: RunConfig, encoded: EncodedRows, quantization: str
) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = replace(config.backbone, quantization=quantization)
    fresh = build_predictor(config.model_copy(update={"backbone": backbone}))
    write_trained_bundle(tmp_path / "bundle", fresh, config.model_copy(update={"backbone": backbone}))
    loaded, _ = load_predictor(tmp_path / "bundle")
    assert np.array_equal(loaded.logits(encoded, 512), fresh.logits(encoded, 512))
    assert not np.array_equal(fresh.logits(encoded, 512), build_predictor(config).logits(encoded, 512))


def test_trained_logits_differ_from_untrained_ones(
    config: RunConfig, predictor: Predictor, encoded: EncodedRows
) -> None:
    ours, fresh = predictor.logits(encoded, 512), build_predictor(config).logits(encoded, 512)
    real = np.isfinite(ours)
    assert np.abs(ours[real] - fresh[real]).mean() > 0.1
    assert len(np.unique(np.round(ours[real], 4))) > real.sum() * 0.9


def test_logits_beyond_a_tasks_labels_are_minus_infinity(predictor: Predictor, encoded: EncodedRows) -> None:
    logits_NC = predictor.logits(encoded, 512)
    assert logits_NC.shape == (60, 3)
    assert np.array_equal(
        np.isneginf(logits_NC), (encoded.task_N == 0)[:, None] & (np.arange(3) == 2)[None, :]
    )


@pytest.mark.parametrize("batch_tokens", [64, 300, 4_096, 1_000_000])
def test_logits_do_not_depend_on_the_batches(
    predictor: Predictor, encoded: EncodedRows, batch_tokens: int
) -> None:
    alone = np.concatenate([predictor.logits(one_row(encoded, row), 1) for row in range(len(encoded))])
    together = predictor.logits(encoded, batch_tokens)
    real = np.isfinite(alone)
    assert np.array_equal(real, np.isfinite(together))
    assert np.abs(alone[real] - together[real]).max() < 1e-5


def one_row(encoded: EncodedRows, row: int) -> EncodedRows:
    return encoded_lists([encoded.ids_of(row).tolist()], encoded.task_N[row : row + 1].tolist())


def test_every_row_is_in_one_step(predictor: Predictor, encoded: EncodedRows) -> None:
    steps: list[np.ndarray] = []
    for step in predictor.plan_logits(encoded, 300):
        steps.append(step.rows)
        step.run()
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(encoded))) and len(steps) > 3


def test_equal_bundles_have_equal_digests(tmp_path: Path, predictor: Predictor, config: RunConfig) -> None:
    one, two = (write_trained_bundle(tmp_path / name, predictor, config) for name in ("one", "two"))
    other = write_trained_bundle(
        tmp_path / "other", replace(predictor, calibration={**CALIBRATION, "two": Calibration()}), config
    )
    assert one == two != other
    assert load_predictor(tmp_path / "one", expected_sha256=two)[1].sha256 == one
    with pytest.raises(DamagedInputError, match="the registry recorded"):
        load_predictor(tmp_path / "other", expected_sha256=one)


@pytest.mark.parametrize("changed", ["weights", "tokenizer"])
def test_changed_backbone_is_refused(bundle_dir: Path, backbone_dir: Path, changed: str) -> None:
    path = backbone_dir / ("model.safetensors" if changed == "weights" else "tokenizer_config.json")
    original = path.read_bytes()
    try:
        if changed == "weights":
            tensors = load_file(path)
            tensors["model.norm.weight"] += 1e-3
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            path.write_text(json.dumps({**json.loads(original), "added": 1}))
        with pytest.raises(DamagedInputError, match=r"has digest .{12}, .* was trained on .{12}") as caught:
            load_predictor(bundle_dir)
        assert caught.value.exit_code == 4
    finally:
        path.write_bytes(original)
    load_predictor(bundle_dir)


def test_missing_backbone_is_a_config_error(bundle_dir: Path, backbone_dir: Path) -> None:
    away = backbone_dir.rename(backbone_dir.with_name("away"))
    try:
        with pytest.raises(ConfigError, match="has no config.json"):
            load_predictor(bundle_dir)
    finally:
        away.rename(backbone_dir)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


ALTERATIONS: dict[str, Callable[[Path], Any]] = {
    "weights": lambda folder: flip_a_byte(folder / "weights.safetensors"),
    "description": lambda folder: flip_a_byte(folder / "bundle.json"),
    "tokenizer": lambda folder: flip_a_byte(folder / "tokenizer" / "tokenizer.json"),
    "weights gone": lambda folder: (folder / "weights.safetensors").unlink(),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: (folder / "manifest.json").write_bytes(
        (folder / "manifest.json").read_bytes()[:-9]
    ),
    "file more": lambda folder: (folder / "extra.json").write_text("{}"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_bundle_is_damaged_input(bundle_dir: Path, alteration: str) -> None:
    ALTERATIONS[alteration](bundle_dir)
    with pytest.raises(DamagedInputError) as caught:
        load_predictor(bundle_dir)
    assert str(bundle_dir) in str(caught.value)


def rewrite_description(bundle_dir: Path, **changes: Any) -> None:
    """Change a bundle's description and make its hashes right again, as another version of this code would
    write it.
    """
    about = json.loads((bundle_dir / "bundle.json").read_bytes()) | changes
    (bundle_dir / "bundle.json").write_bytes(encode_json(about))
    manifest = json.loads((bundle_dir / "manifest.json").read_bytes())
    manifest["files"]["bundle.json"] = bytes_sha256((bundle_dir / "bundle.json").read_bytes())
    (bundle_dir / "manifest.json").write_bytes(encode_json(manifest))


def test_rewritten_description_is_read(bundle_dir: Path) -> None:
    rewrite_description(bundle_dir, calibration={"two": {"temperature": 3.0}, "three": {}})
    assert load_predictor(bundle_dir)[0].calibration["two"].temperature == 3.0


def test_bundle_of_another_encoder_version_is_refused(bundle_dir: Path) -> None:
    rewrite_description(bundle_dir, encoder_version="0")
    with pytest.raises(DamagedInputError, match="has encoder version 0, this code has"):
        load_predictor(bundle_dir)


def test_weights_of_another_shape_are_refused(bundle_dir: Path) -> None:
    adapter = json.loads((bundle_dir / "bundle.json").read_bytes())["adapter"]
    rewrite_description(bundle_dir, adapter={**adapter, "rank": adapter["rank"] + 1})
    with pytest.raises(DamagedInputError, match="these weights are of another model"):
        load_predictor(bundle_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"source": "/no/such/model"}}, "has no config.json"),
        (
            {"adapter": {"target_modules": ["no_proj"]}},
            "names 'no_proj', which is no linear of this backbone; its linears: .*q_proj",
        ),
        ({"encode": {"max_tokens": 16}, "tasks": [WORDY]}, "over half of encode.max_tokens = 16; shorten it"),
    ],
)
def test_config_that_does_not_fit_its_backbone_is_refused(
    config: RunConfig, changes: dict[str, Any], message: str
) -> None:
    wrong = build_config({**config.model_dump(mode="json"), **changes}, "test")
    with pytest.raises(ConfigError, match=message):
        build_predictor(wrong)


def test_model_whose_rows_depend_on_padding_is_never_loaded(
    config: RunConfig, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the weights, and so the digest, stay the same
    load_trunk = AutoModel.from_pretrained

    def load_bidirectional(*args: Any, **options: Any) -> Any:
        trunk, loading = load_trunk(*args, **options)
        trunk.config.is_causal = False
        return trunk, loading

    monkeypatch.setattr(AutoModel, "from_pretrained", load_bidirectional)
    assert build_predictor(config).model.pooling == "mean"
    assert load_predictor(bundle_dir)[0].model.pooling == "mean"
    monkeypatch.setattr("models.trunks.sees_later_tokens", lambda trunk: False)
    for load in (lambda: build_predictor(config), lambda: load_predictor(bundle_dir)):
        with pytest.raises(ConfigError, match="rows of this llama depend on the rows beside them"):
            load()


def test_predictors_of_one_seed_are_equal(config: RunConfig, encoded: EncodedRows) -> None:
    one, two = (build_predictor(config) for _ in range(2))
    assert np.array_equal(one.logits(encoded, 512), two.logits(encoded, 512))
    assert all(
        torch.equal(t, two.model.trainable_state()[name]) for name, t in one.model.trainable_state().items()
    )
