"""Private parts of Ray: an upgrade that changes one fails here with the name of the part."""

import inspect
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.runtime.ray_internals import (
    TESTED_VERSION,
    create_job_client,
    disable_sigint_handler,
    is_missing_agent,
    is_socket_path_too_long,
    is_startup_timeout,
    system_temp_dir,
)

CHANGED = (
    f"{{part}} has changed in Ray {ray.__version__} (tested with {TESTED_VERSION}); "
    "adapt pipeline/runtime/ray_internals.py"
)


def test_sigint_handler_is_disabled_and_callbacks_stay() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer: Any = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    handler = getattr(trainer, "_register_sigint_handler", None)
    assert callable(handler), CHANGED.format(part="TorchTrainer._register_sigint_handler")
    assert list(inspect.signature(handler).parameters) == ["controller"], CHANGED.format(
        part="the signature of TorchTrainer._register_sigint_handler"
    )
    callbacks = [type(callback) for callback in trainer._create_default_callbacks()]
    disable_sigint_handler(trainer)
    assert trainer._register_sigint_handler(None) is None
    assert [type(callback) for callback in trainer._create_default_callbacks()] == callbacks


def test_startup_timeout_is_recognised() -> None:
    from ray.train import ControllerError

    try:
        from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    except ImportError:
        pytest.fail(CHANGED.format(part="WorkerGroupStartupTimeoutError"))
    timeout = WorkerGroupStartupTimeoutError(2)
    assert is_startup_timeout(timeout)
    assert is_startup_timeout(ControllerError(timeout)), CHANGED.format(
        part="ControllerError.controller_failure"
    )
    assert not is_startup_timeout(RuntimeError("other"))


def test_job_client_gives_up_on_a_silent_head_node() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_s = time.monotonic()
        with pytest.raises((ConnectionError, OSError, RuntimeError)):
            create_job_client(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.5)
        assert time.monotonic() - started_s < 20, CHANGED.format(part="JobSubmissionClient._do_request")


def test_missing_agent_is_recognised_by_the_text_of_ray() -> None:
    from ray.dashboard.modules.job import job_head

    text = "No available agent"
    assert text in Path(job_head.__file__).read_text(), CHANGED.format(part=f"the error text {text!r}")
    assert is_missing_agent(RuntimeError(f"Request failed with status code 500: {text} to submit job"))
    assert not is_missing_agent(RuntimeError("The job is too large"))


def test_long_socket_path_is_recognised_by_the_text_of_ray(tmp_path: Path) -> None:
    from ray._private import utils

    text = "AF_UNIX path length"
    assert text in Path(utils.__file__).read_text(), CHANGED.format(part=f"the error text {text!r}")
    assert is_socket_path_too_long(OSError(f"{text} cannot exceed 107 bytes"))
    assert not is_socket_path_too_long(OSError("No space left on device"))


def test_sessions_lie_below_the_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert system_temp_dir() == str(tmp_path), CHANGED.format(part="get_default_system_temp_dir")
