"""A plan to encode judged rows, with a tokenizer folder of its own."""

import shutil
from pathlib import Path

import pytest

from pipeline.data.reader import find_partitions
from pipeline.encoding.encoded_cache import EncodingPlan
from tests.support.encoding_plans import ENCODE, SPLIT, TASKS, write_judged


@pytest.fixture(scope="module")
def tokenizer_dir(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our own."""
    return Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("tokenizer") / "llama"))


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Return a folder of judged rows."""
    return write_judged(tmp_path / "judged")


@pytest.fixture
def plan(judged: Path, tokenizer_dir: Path) -> EncodingPlan:
    """Return the plan to encode them."""
    return EncodingPlan(find_partitions(judged, TASKS), SPLIT, TASKS, ENCODE, tokenizer_dir)
