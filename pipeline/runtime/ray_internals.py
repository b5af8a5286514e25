"""Private and undocumented parts of Ray that this project depends on, each with its reason.

They were tested with Ray TESTED_VERSION. After an upgrade, tests/pipeline/runtime/test_ray_internals.py names
the part that has changed.
"""

import http.client
import urllib.error
import urllib.request
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.filesystem import parse_json_object

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


def is_version_mismatch(error: BaseException) -> bool:
    """Return True if a cluster runs another version of Ray or Python.

    Ray raises a plain RuntimeError, so the text of the error decides.
    """
    return isinstance(error, RuntimeError) and "Version mismatch" in str(error)


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


def cluster_requires_token(address: str, timeout_s: float) -> bool:
    """Return True if a cluster asks for a token; raise ConnectionError if it does not answer.

    A cluster without a token lets in clients with one too, so an empty request without a token decides. Ray
    has no client for that.

    Args:
        address: host:port, or ray://host:port of a server of Ray Client.
        timeout_s: Time for an answer.
    """
    return _is_unauthenticated(address, timeout_s, ())


def cluster_refuses_token(address: str, timeout_s: float) -> bool:
    """Return True if a cluster refuses the token of this process; otherwise as `cluster_requires_token`.

    `ray.init` raises the ConnectionError of a cluster that does not answer.
    """
    from ray._private.authentication import grpc_authentication_client_interceptor as interceptor

    return _is_unauthenticated(address, timeout_s, interceptor._get_authentication_metadata_tuple())


def _is_unauthenticated(address: str, timeout_s: float, metadata: tuple[tuple[str, str], ...]) -> bool:
    import grpc

    place = address.removeprefix("ray://")
    method = "NodeInfoGcsService/CheckAlive" if place == address else "RayletDriver/ClusterInfo"
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ConnectionError(error.details()) from error
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def dashboard_requires_token(address: str, timeout_s: float) -> bool:
    """Return True if the dashboard at an http address asks for a token.

    Ray has no client for this page, which answers without a token too.

    Raises:
        OSError: It does not answer, or its server fails.
        ConfigError: It is not a dashboard of Ray.
    """
    page = f"{address.rstrip('/')}/api/authentication_mode"
    try:
        with urllib.request.urlopen(page, timeout=timeout_s) as answer:
            return bool(parse_json_object(answer.read())["authentication_mode"] != "disabled")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return True
        if error.code >= 500:
            raise
        found = f"HTTP {error.code}"
    except ConnectionError:
        raise
    except (ValueError, KeyError, http.client.HTTPException) as error:  # InvalidURL is one of the last
        found = type(error).__name__
    raise ConfigError(f"not a dashboard of Ray: {address} ({found}); write it as http://head:8265")


def running_cluster_address() -> str:
    """Return the address that `auto` stands for; raise ConnectionError if no cluster runs on this machine.

    Ray has no public function for it that does not connect.
    """
    from ray._private.services import get_ray_address_from_environment

    return str(get_ray_address_from_environment("auto", None))
