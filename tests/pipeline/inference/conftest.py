"""A model of four layers, and worlds to score with it."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.all_tasks_scoring import BuildWorld, unlike_tasks
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS, World
from tests.support.tiny import write_tiny_llama


@pytest.fixture(scope="session")
def deep_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama of 4 layers."""
    return write_tiny_llama(tmp_path_factory.mktemp("deep") / "llama", num_layers=4)


@pytest.fixture
def build(tmp_path: Path, deep_llama: Path) -> BuildWorld:
    """Return a builder of worlds with two units of `two` and one of `three`."""

    def built(**blocks: Any) -> World:
        world = World(tmp_path, deep_llama, prepare=unlike_tasks, **blocks)
        write_rows(
            planted_rows("three", ROWS, 5, labeled=False),
            tmp_path / "to_score" / "task=three" / "part-5-other.parquet",
        )
        return world

    return built
