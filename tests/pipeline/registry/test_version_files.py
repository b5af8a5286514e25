"""Fetched versions: damaged files are fetched once more, and nothing stays damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from models import files as model_files
from models.serialization.bundle import read_bundle
from pipeline.errors import DamagedInputError, RetryableError
from pipeline.registry import version_files
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.version_files import fetch_version, find_champion
from pipeline.storage.filesystem import write_json
from tests.support.scoring_world import World


class Registry:
    """A registry of one version, whose files lie in a folder."""

    def __init__(self, world: World, folder: Path) -> None:
        self.config = world.config.model_copy(update={"work_dir": folder / "runs"})
        self.sha256 = world.sha256
        self.stored = folder / "stored"
        self.bundle = self.stored / "data" / "artifacts" / "bundle"
        shutil.copytree(world.root / "bundle", self.bundle)
        write_json(self.bundle.parent / "profile.json", {"rows": 8})
        self.is_up, self.downloads = True, 0

    def connect(self, uri: str) -> None:
        if not self.is_up:
            raise RetryableError("registry does not answer")

    def get_version(self, *args: Any) -> Any:
        tags = {
            "bundle_sha256": self.sha256,
            "macro_pr_auc": "0.9",
            "lexical_macro_pr_auc": "0.7",
            "data_gate": "passed",
        }
        return SimpleNamespace(version="1", name="planted", tags=tags)

    def download(self, source: str, dst_path: str) -> str:
        self.downloads += 1
        return str(shutil.copytree(self.stored, dst_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> World:
    return World(tmp_path_factory.mktemp("world"), tiny_llama)


@pytest.fixture
def registry(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry(world, tmp_path)
    entries = [SimpleNamespace(version="1", bundle_sha256=world.sha256)]
    monkeypatch.setattr(version_files, "connect_mlflow", registry.connect)
    monkeypatch.setattr(version_files, "get_version", registry.get_version)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", registry.download)
    monkeypatch.setattr(PromotionLog, "read_files", lambda self: entries)
    monkeypatch.setattr(PromotionLog, "repair_registry", lambda self, client: entries)
    return registry


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut weights": lambda artifacts: cut(artifacts / "bundle" / "weights.safetensors"),
    "a flipped bit": lambda artifacts: flip(artifacts / "bundle" / "weights.safetensors"),
    "lost manifest": lambda artifacts: (artifacts / "bundle" / "manifest.json").unlink(),
    "cut description": lambda artifacts: cut(artifacts / "bundle" / "bundle.json"),
    "lost bundle": lambda artifacts: shutil.rmtree(artifacts / "bundle"),
    "cut profile": lambda artifacts: cut(artifacts / "profile.json"),
}


def test_damaged_files_are_fetched_once_more(registry: Registry) -> None:
    fetched = fetch_version(registry.config, "1")
    for number, (name, damage) in enumerate(DAMAGES.items(), start=1):
        assert registry.downloads == number, name
        damage(fetched.bundle_dir.parent)
        assert fetch_version(registry.config, "1") == fetched
        stored = {path.name: path.read_bytes() for path in registry.stored.rglob("*") if path.is_file()}
        files = {path.name: path.read_bytes() for path in fetched.folder.rglob("*") if path.is_file()}
        assert files == stored, name
    assert {path.name for path in fetched.folder.parent.iterdir()} <= {fetched.folder.name, ".lock"}


def test_files_that_another_command_fetched_meanwhile_are_kept(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[int] = []
    download = registry.download

    def download_while_another_command_does(source: str, dst_path: str) -> str:
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
        inner.append(fetch_version(registry.config, "1").folder.stat().st_ino)
        return download(source, dst_path)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download_while_another_command_does)
    folder = fetch_version(registry.config, "1").folder
    assert [folder.stat().st_ino] == inner and registry.downloads == 2


def test_version_of_the_first_layout_is_fetched(registry: Registry) -> None:
    (registry.stored / "data" / "artifacts").rename(registry.stored / "artifacts")
    assert read_bundle(fetch_version(registry.config, "1").bundle_dir).sha256 == registry.sha256


def test_version_damaged_in_the_registry_is_used_once_it_is_repaired(registry: Registry) -> None:
    cut(registry.bundle / "weights.safetensors")
    for _ in range(2):
        with pytest.raises(
            DamagedInputError, match="damaged in the registry: .*weights.safetensors does not"
        ):
            fetch_version(registry.config, "1")
    assert registry.downloads == 2
    shutil.rmtree(registry.bundle)
    with pytest.raises(DamagedInputError, match="damaged in the registry: .*has no manifest.json"):
        fetch_version(registry.config, "1")


def test_damaged_champion_waits_for_the_registry(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    champion = find_champion(registry.config)
    assert champion is not None
    registry.is_up = False
    offline = find_champion(registry.config)
    assert offline == champion
    assert caplog.text.count("registry does not answer; using version 1, the champion by the promotion") == 1
    cut(champion.bundle_dir / "weights.safetensors")
    with pytest.raises(RetryableError, match="is damaged here .*weights.safetensors does not match"):
        find_champion(registry.config)
    registry.is_up = True
    assert find_champion(registry.config) == champion
    assert registry.downloads == 2


def test_empty_log_is_not_believed_while_the_registry_is_down(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromotionLog, "read_files", lambda self: [])
    registry.is_up = False
    with pytest.raises(RetryableError, match="registry does not answer"):
        find_champion(registry.config)


def test_downloads_are_on_disk_before_they_are_published(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync_tree = model_files.sync_tree

    def sync(folder: Path) -> None:
        assert (folder / "data" / "artifacts" / "bundle" / "manifest.json").is_file()
        synced.append(folder)
        sync_tree(folder)

    monkeypatch.setattr(version_files, "sync_tree", sync)
    fetched = fetch_version(registry.config, "1")
    assert [folder.parent for folder in synced] == [fetched.folder.parent]
