"""The Ray cluster a command runs on: the one RAY_ADDRESS names, or one on this machine for as long as the
command runs.
"""

import contextlib
import os
import socket
from collections.abc import Iterator

from jobs.environment import end_on_sigterm, worker_environment
from pipeline.errors import ConfigError, RetryableError


@contextlib.contextmanager
def ray_cluster(num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """Connect, and leave at the end. RetryableError: the cluster does not answer. `num_cpus` and `num_gpus`
    are what a local one must offer at least; ConfigError: this machine has not so many GPUs.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            check_answers(address)
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": worker_environment()})
        else:
            # "local", or Ray would join, or refuse to join, a cluster that somebody else has started on this
            # machine
            num_cpus = max(num_cpus, os.cpu_count() or 1)
            # nobody takes this node away; its actor would wake all the time
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # Ray's agent looks at all processes for a dashboard that is not there
            os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, RuntimeError, TimeoutError, OSError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise RetryableError(
            f"Ray {where} did not start or answer ({type(error).__name__}: {error}); check it and run again"
        ) from error
    end_on_sigterm()
    try:
        if not address:
            # it reads all logs ten times a second, and nobody asks it what they say; no loss if another Ray
            # calls it otherwise
            with contextlib.suppress(AttributeError):
                ray._private.worker._global_node.kill_log_monitor(check_alive=False)  # type: ignore[attr-defined]
            check_gpus(int(ray.cluster_resources().get("GPU", 0)), num_gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def given_cluster() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names; without one, this process alone: starting a local one would take
    longer than what it is for.
    """
    with ray_cluster(1) if os.environ.get("RAY_ADDRESS") else contextlib.nullcontext():
        yield


def no_node_for(num_cpus: int, num_gpus: int) -> bool:
    """Whether no node of the connected cluster, as it is now, is large enough for a process with so much."""
    import ray

    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    return not any(
        node["Alive"] and all(node["Resources"].get(name, 0) >= number for name, number in wanted.items())
        for node in ray.nodes()
    )


def check_gpus(found: int, wanted: int) -> None:
    """ConfigError: there are too few, for which Ray would wait without end."""
    if found < wanted:
        cure = (
            "set use_gpu to false or ask for fewer processes (training.num_workers, scoring.num_actors), "
            "or name a cluster by RAY_ADDRESS"
        )
        raise ConfigError(f"use_gpu asks for {wanted} GPUs and this machine has {found}; {cure}")


def check_answers(address: str) -> None:
    """OSError if nobody listens at host:port within ten seconds; Ray itself would try for minutes. Other
    forms of address pass.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
