"""Fixtures: a plan to encode labeled rows, with its own tokenizer folder."""

import shutil
from pathlib import Path

import pytest

from pipeline.data.reader import find_partitions
from pipeline.encoding.encoded_cache import EncodingPlan
from tests.support.encoding_plans import ENCODE, SPLIT, TASKS, write_judged


@pytest.fixture(scope="module")
def tokenizer_dir(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tokenizer's folder."""
    return Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("tokenizer") / "llama"))


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Return a folder of rows, most with labels."""
    return write_judged(tmp_path / "judged")


@pytest.fixture
def plan(judged: Path, tokenizer_dir: Path) -> EncodingPlan:
    """Return the plan to encode them."""
    return EncodingPlan(find_partitions(judged, TASKS), SPLIT, TASKS, ENCODE, tokenizer_dir)
