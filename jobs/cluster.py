"""The Ray cluster a command runs on: the one RAY_ADDRESS names, or a local one that ends with the command."""

import contextlib
import ipaddress
import os
import resource
import secrets
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from jobs.environment import end_on_signals, worker_environment
from pipeline.errors import ConfigError, RetryableError
from pipeline.runtime.ray_internals import (
    cluster_refuses_token,
    cluster_requires_token,
    dashboard_requires_token,
    is_socket_path_too_long,
    is_version_mismatch,
    running_cluster_address,
    system_temp_dir,
)
from pipeline.runtime.waiting import announce_wait
from pipeline.uris import holds_credentials

CONNECT_TIMEOUT_S = 10.0  # Ray itself would try for minutes
# processes of Ray end without a message where they run out of open files
MIN_OPEN_FILES, WANTED_OPEN_FILES = 1024, 65_536

INSECURE = "RELEVANCE_INSECURE"  # 1: the user accepts a cluster without a token, by --insecure
TOKEN_REMEDY = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


@contextlib.contextmanager
def ray_cluster(num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """Connect to the cluster, and disconnect when the context ends.

    Args:
        num_cpus: CPUs that a local cluster offers at least.
        num_gpus: GPUs that this machine must have for a local cluster.

    Raises:
        RetryableError: Ray did not start or answer, or may open too few files.
        ConfigError: This machine has too few GPUs, RAY_ADDRESS is not an address of a cluster, the cluster
            refuses the token or the version, or Ray cannot use its temporary folder.
    """
    address = given_address()
    raise_open_files()
    import ray

    try:
        place = f"Ray at {address} to answer" if address else "Ray to start on this machine"
        with announce_wait(place), _ray_sigterm_handler_undone():
            _connect(address, num_cpus)
    except ConfigError:
        raise
    except Exception as error:  # Ray raises many classes, down to Exception itself
        place = f"at RAY_ADDRESS={address}" if address else "on this machine"
        if isinstance(error, ray.exceptions.AuthenticationError) or _is_token_refused(address):
            raise access_refused(f"Ray {place}", error) from error
        if is_version_mismatch(error):
            versions = " ".join(str(error).split())
            raise ConfigError(
                f"versions of Ray or Python differ {place}: {versions}; use the versions of the cluster"
            ) from error
        if not address and is_socket_path_too_long(error):
            raise ConfigError(
                f"temporary folder of Ray has a path too long for sockets: {system_temp_dir()}; set "
                "RAY_TMPDIR to a short one, such as /tmp"
            ) from error
        if isinstance(error, PermissionError):
            raise ConfigError(
                f"Ray {place} has no access: {error}; set RAY_TMPDIR and HOME to folders that this user may "
                "write to"
            ) from error
        raise RetryableError(
            f"Ray {place} did not start or answer: {type(error).__name__}: {error}; check it and run again"
        ) from error
    try:
        if not address:
            check_local_gpus(num_gpus)
        # the command draws the bars
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ray_sigterm_handler_undone() -> Iterator[None]:
    """Make SIGTERM interrupt the command: ray.init sets a handler that exits with code 15."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        end_on_signals()


def _connect(address: str | None, num_cpus: int) -> None:
    import ray

    if address:
        check_reachable(address)
        check_cluster_token(address)
        runtime_env = {
            "env_vars": worker_environment(),
            # the mask of a cluster's processes is that of whoever started them
            "worker_process_setup_hook": "jobs.environment.restrict_file_modes",
        }
        ray.init(address=address, log_to_driver=False, runtime_env=runtime_env)
    else:
        protect_own_cluster()
        # without "local", Ray would join a cluster that somebody else has started on this machine
        ray.init(
            address="local",
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )


@contextlib.contextmanager
def given_cluster() -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names; without RAY_ADDRESS, do nothing.

    For work that is done before a local cluster would have started.
    """
    with ray_cluster(1) if given_address() else contextlib.nullcontext():
        yield


def given_address() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names; None for a cluster of the command's own.

    Raises:
        ConfigError: It is not an address that Ray can connect to.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    check_address("RAY_ADDRESS", address)
    if address in ("", "local"):
        return None
    if address == "auto":
        return address
    scheme, separator, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16 or (separator and scheme != "ray"):
        cure = "write host:port (6379 is usual), ray://host:10001, auto or local"
        if scheme in ("http", "https"):
            cure += "; send commands to a dashboard with `relevance submit --address`"
        raise ConfigError(f"RAY_ADDRESS not an address of a Ray cluster: {address}; {cure}")
    return address


def check_address(name: str, address: str) -> None:
    """Raise ConfigError, which does not show it, if the address of a cluster holds credentials."""
    if holds_credentials(address, "uri"):
        raise ConfigError(
            f"{name} holds an account or a secret, not shown here; write the address without it, and set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        )


def raise_open_files() -> None:
    """Raise this process's limit of open files, which Ray's processes inherit, as far as it may be raised.

    Raises:
        RetryableError: The limit stays too low for Ray.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = highest
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        raise RetryableError(
            f"limit of open files too low for Ray: {soft:,} of at least {MIN_OPEN_FILES:,}; raise the hard "
            "limit (`ulimit -n`, LimitNOFILE of a service, --ulimit of a container), run the command again"
        )


def protect_own_cluster() -> None:
    """Give the cluster of this command a token of its own: its ports are open to the network.

    Raises:
        ConfigError: RAY_AUTH_MODE switches tokens off.
    """
    # Ray's own default is a token for a cluster that it starts; it sets the variable and reads it again
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        _refuse_open_cluster("on this machine", "unset RAY_AUTH_MODE")
    elif not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


def check_cluster_token(address: str) -> None:
    """Raise ConfigError if a cluster that others can reach asks for no token.

    Args:
        address: The cluster, in a form of RAY_ADDRESS.
    """
    if _demands_certificates():
        return
    place = _place_of(address)
    host = place.removeprefix("ray://").rpartition(":")[0].strip("[]")
    if not is_loopback(host) and not cluster_requires_token(place, CONNECT_TIMEOUT_S):
        _refuse_open_cluster(f"at {place}", "start it with RAY_AUTH_MODE=token")


def _is_token_refused(address: str | None) -> bool:
    """Return True if the cluster that did not let this process in refuses its token."""
    if address is None or _demands_certificates():
        return False
    try:
        return cluster_refuses_token(_place_of(address), CONNECT_TIMEOUT_S)
    except ConnectionError:
        return False


def _place_of(address: str) -> str:
    """Return an address that names its host; ConnectionError if `auto` finds no cluster."""
    return running_cluster_address() if address == "auto" else address


def access_refused(place: str, error: Exception) -> ConfigError:
    """Return the error for a cluster that refuses this process's token."""
    reason = str(error).splitlines()[0].rstrip(".")
    return ConfigError(f"access refused by {place}: {reason}; {TOKEN_REMEDY}")


def _demands_certificates() -> bool:
    """Return True if Ray uses TLS: its servers demand a certificate of each client, by this authority."""
    is_used = os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true")
    return is_used and bool(os.environ.get("RAY_TLS_CA_CERT"))


def is_dashboard_address(address: str) -> bool:
    """Return True if an address has the form http://host:port; the port may be missing."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def check_dashboard_token(address: str) -> None:
    """Raise ConfigError if a dashboard that others can reach asks for no token.

    Args:
        address: The dashboard, such as http://head:8265.
    """
    host = urlsplit(address).hostname or ""
    if not is_loopback(host) and not dashboard_requires_token(address, CONNECT_TIMEOUT_S):
        _refuse_open_cluster(f"at {address}", "start it with RAY_AUTH_MODE=token")


def _refuse_open_cluster(place: str, cure: str) -> None:
    """Raise ConfigError for a cluster without a token, unless the user insists."""
    if os.environ.get(INSECURE) != "1":
        raise ConfigError(
            f"cluster without a token {place}; whoever reaches it can run code and read its data: {cure}, or "
            "add --insecure to use it as it is"
        )


def is_loopback(host: str) -> bool:
    """Return True if a host is reached from its own machine alone."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def has_node_for(num_cpus: int, num_gpus: int) -> bool:
    """Return True if the connected cluster has a node that is large enough for a process."""
    import ray

    needed = {"CPU": num_cpus, "GPU": num_gpus}
    return any(
        node["Alive"] and all(node["Resources"].get(name, 0) >= number for name, number in needed.items())
        for node in ray.nodes()
    )


def check_local_gpus(needed: int) -> None:
    """Raise ConfigError if the local cluster, which is connected, has too few GPUs."""
    import ray

    check_gpus(int(ray.cluster_resources().get("GPU", 0)), needed)


def check_gpus(found: int, needed: int) -> None:
    """Raise ConfigError if there are too few GPUs; Ray would wait for them without end."""
    if found < needed:
        raise ConfigError(
            f"GPUs missing: use_gpu asks for {needed} and this machine has {found}; set use_gpu to false, "
            "ask for fewer processes (training.num_workers, num_actors of scoring or evaluation), or name a "
            "cluster with RAY_ADDRESS"
        )


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at host:port; addresses of another form pass."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
