"""Every test: no hub, quiet libraries, few threads, and the repository as the place commands are run from."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jobs.environment import prepare_environment  # noqa: E402

prepare_environment()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a random two-layer Llama with its tokenizer."""
    from tiny import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")
