"""Private and undocumented parts of Ray that this project depends on, each with its reason.

They were tested with Ray TESTED_VERSION. After an upgrade, tests/pipeline/runtime/test_ray_internals.py names
the part that has changed.
"""

from typing import Any

TESTED_VERSION = "2.60.0"


def disable_sigint_handler(trainer: Any) -> None:
    """Stop a trainer of Ray Train from installing its handler of Ctrl-C.

    The handler stays installed after the training, and its third Ctrl-C ends the command with exit code 0.
    """
    trainer._register_sigint_handler = lambda controller: None


def is_startup_timeout(error: BaseException) -> bool:
    """Return True if a training failed because the cluster had no free resources for its workers.

    Ray has no public class for this error, and its message has no fixed wording.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", error), WorkerGroupStartupTimeoutError)


def create_job_client(address: str, timeout_s: float) -> Any:
    """Return Ray's client of jobs at a dashboard's address, with a limit on the time of each request.

    The client has no setting for it: a head node that hangs would block the command for ever.
    """
    from ray.job_submission import JobSubmissionClient

    class BoundedClient(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": timeout_s, **options})

    return BoundedClient(address)


def is_missing_agent(error: RuntimeError) -> bool:
    """Return True if a cluster refused a job because its head node has no agent yet.

    Ray raises the same class for every refusal, so the text of the error decides.
    """
    return "No available agent" in str(error)


def is_socket_path_too_long(error: BaseException) -> bool:
    """Return True if Ray did not start because its sockets would have paths over the limit of the system.

    Ray raises a plain OSError, so the text of the error decides.
    """
    return "AF_UNIX path length" in str(error)


def system_temp_dir() -> str:
    """Return the folder below which Ray keeps its sessions.

    Ray reads the variables in an order of its own and has no public function for it.
    """
    from ray._common.utils import get_default_system_temp_dir

    return str(get_default_system_temp_dir())
