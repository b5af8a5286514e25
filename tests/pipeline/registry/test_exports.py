"""Exports of versions are published only after they were loaded back and gave the model's logits."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from models.serialization.export import ExportFormat
from pipeline.errors import ConfigError
from pipeline.inference.predictor import Predictor
from pipeline.registry import exports
from pipeline.registry.exports import export_task
from tests.support.scoring_world import World

FORMATS: tuple[ExportFormat, ...] = ("peft", "merged")


def stir(predictor: Predictor) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in predictor.model.trainable_state().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> World:
    return World(tmp_path_factory.mktemp("exports"), tiny_llama, prepare=stir)


@pytest.mark.parametrize("export_format", FORMATS)
def test_model_is_released_before_its_export_is_loaded(
    world: World, export_format: ExportFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []
    load, check_export = exports.load_predictor, exports.check_export

    def load_predictor(*args: Any) -> Any:
        predictor, bundle = load(*args)
        models.append(weakref.ref(predictor.model))
        return predictor, bundle

    def check(folder: Path, *args: Any) -> None:
        assert [model() for model in models] == [None]
        assert not (tmp_path / "export").exists(), "published before the check"
        check_export(folder, *args)

    monkeypatch.setattr(exports, "load_predictor", load_predictor)
    monkeypatch.setattr(exports, "check_export", check)
    export_task(world.version, "three", export_format, tmp_path / "export")
    assert (tmp_path / "export" / "README.md").is_file()


@pytest.mark.parametrize("export_format", FORMATS)
def test_export_that_answers_otherwise_is_refused_without_files(
    world: World, export_format: ExportFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exports.WRITERS[export_format]

    def write_head_of_another_task(task: Any, folder: Path) -> None:
        with torch.no_grad():
            task.model.heads.bias_K.add_(1.0)
        write(task, folder)
        with torch.no_grad():
            task.model.heads.bias_K.sub_(1.0)

    monkeypatch.setitem(exports.WRITERS, export_format, write_head_of_another_task)
    with pytest.raises(ConfigError, match=f"cannot be exported as {export_format}: .*logits differ"):
        export_task(world.version, "two", export_format, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_peft_export_without_peft_is_refused_before_the_model_is_loaded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.serialization.export_check.find_spec", lambda name: None)
    monkeypatch.setattr(exports, "load_predictor", None)
    with pytest.raises(ConfigError, match="package peft, which checks the export, is missing"):
        export_task(world.version, "two", "peft", tmp_path / "export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{}", "[]", '{"bundle_sha256": "b", "task": 3}', "no json"])
def test_folder_of_something_else_is_not_overwritten(world: World, tmp_path: Path, content: str) -> None:
    (tmp_path / "relevance.json").write_text(content)
    with pytest.raises(ConfigError, match="exists already; remove it or name another folder"):
        export_task(world.version, "three", "merged", tmp_path)
    assert (tmp_path / "relevance.json").read_text() == content
