"""One finished run of the whole path for all tests of commands that need one."""

import subprocess
from pathlib import Path

import pytest
from commands import relevance
from planted import planted_config, write_config, write_planted


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """(root, config, the finished `relevance run`)."""
    root = tmp_path_factory.mktemp("run")
    write_planted(root)
    config = write_config(root / "planted.yaml", planted_config(root, str(tiny_llama)))
    return root, config, relevance("run", "--config", str(config), cwd=root)
