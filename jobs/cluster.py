"""The Ray cluster a command runs on: the one RAY_ADDRESS names, or one on this machine for as long as the command runs."""

import contextlib
import os
import socket
from collections.abc import Iterator

from jobs.environment import end_on_sigterm, worker_environment
from pipeline.errors import RetryableError


@contextlib.contextmanager
def ray_cluster(num_cpus: int) -> Iterator[None]:
    """Connect, and leave at the end. RetryableError: the cluster does not answer. `num_cpus` is what a local one must offer at least."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            check_answers(address)
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": worker_environment()})
        else:
            # "local", or Ray would join, or refuse to join, a cluster that somebody else has started on this machine
            num_cpus = max(num_cpus, os.cpu_count() or 1)
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this node away; its actor would wake all the time
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, TimeoutError, OSError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise RetryableError(f"Ray {where} did not start or answer ({type(error).__name__}: {error}); check it and run again") from error
    end_on_sigterm()
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def given_cluster() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names; without one, this process alone: starting a local one would take longer than what it is for."""
    with ray_cluster(1) if os.environ.get("RAY_ADDRESS") else contextlib.nullcontext():
        yield


def check_answers(address: str) -> None:
    """OSError if nobody listens at host:port within ten seconds; Ray itself would try for minutes. Other forms of address pass."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
