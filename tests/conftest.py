"""Settings and fixtures of all tests: no model hub, quiet libraries, few threads."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# before the libraries are imported, which read these variables then; child processes inherit them
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jobs.environment import prepare_environment  # noqa: E402

prepare_environment()  # the commands' own settings

# started first, so that both processes of a tier end together; longest first
LONG_FILES = (
    "jobs/commands/test_run.py",
    "failures/test_training_exact.py",
    "jobs/commands/test_run_real_model.py",
    "pipeline/registry/test_model_versions_server.py",
    "jobs/commands/test_validate.py",
    "pipeline/inference/test_task_predictor.py",
    "pipeline/inference/test_multitask_predictor.py",
    "jobs/test_cli.py",
    "pipeline/encoding/test_encoded_cache.py",
    "models/test_shrinking.py",
    "pipeline/config/test_extensions.py",
    "pipeline/evaluation/test_runner_whole_run.py",
    "pipeline/runtime/test_watchdog.py",
    "validation/leakage/test_report.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder with a random two-layer Llama and its tokenizer."""
    from tests.support.tiny import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of an S3 server with the bucket "labels"; clients find it in the AWS variables."""
    from tests.support.servers import s3_server

    with s3_server("labels") as address, pytest.MonkeyPatch.context() as patched:
        settings = {
            "ENDPOINT_URL": address,
            "ACCESS_KEY_ID": "key",
            "SECRET_ACCESS_KEY": "secret",
            "REGION": "us-east-1",
        }
        for name, value in settings.items():
            patched.setenv(f"AWS_{name}", value)
        yield address


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path
) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """Root folder, config and finished process of a whole `relevance run`, which has secrets to keep.

    Ray's logs and records are checked too, and deleted.
    """
    from tests.support.canaries import files_with_canaries, plant_canaries
    from tests.support.commands import relevance
    from tests.support.planted import planted_config, write_config, write_planted

    root = tmp_path_factory.mktemp("run")
    write_planted(root)
    config = write_config(root / "planted.yaml", planted_config(root, str(tiny_llama)))
    secrets = plant_canaries(tmp_path_factory.mktemp("secrets") / "files", root)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as sessions:  # sockets need a short path
        finished = relevance("run", "--config", str(config), cwd=root, RAY_TMPDIR=sessions, **secrets)
        assert files_with_canaries(Path(sessions)) == []
    return root, config, finished


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file in one process, and all files that use `finished_run`, which takes a minute."""
    from xdist.scheduler import LoadFileScheduling

    from tests.support.places import ROOT

    class FinishedRunScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "finished run" if "finished_run" in (ROOT / file).read_text() else file

    return FinishedRunScheduling(config, log)
