"""An actor publishes a unit only if its rows are those that were planned and compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.scoring import work_units
from pipeline.scoring.label_store import read_manifests
from tests.support.scoring_world import ROWS, World


def test_file_changed_while_it_is_read_is_not_published(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_llama)
    scorer, unit = world.scorer(), world.units()[0]
    check_schema = work_units.check_schema

    def write_again(file: Any, path: Any) -> None:
        check_schema(file, path)
        Path(path).write_bytes(Path(path).read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr(work_units, "check_schema", write_again)
        result = scorer.score_unit(unit)
    assert "input changed while it was scored" in result.error and result.retry
    assert not read_manifests(world.scores_dir)
    assert scorer.score_unit(unit).labels == ROWS


def test_unit_whose_ids_were_not_compared_is_not_published(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    result = world.scorer().score_unit(replace(world.units()[0], has_unknown_ids=True))
    assert "row_ids could not be read when they were compared" in result.error and result.retry
    assert not read_manifests(world.scores_dir)
