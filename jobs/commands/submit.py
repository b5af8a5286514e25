"""Commands as jobs of a Ray cluster, through its dashboard's address: submitting, following, listing.

Ray keeps a job's id for as long as the cluster stands and takes each but once. Ours follows from what the
command does, so that who submits the same again is led to the job that there is.
"""

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError, last_line
from pipeline.storage.filesystem import json_sha256

PREFIX = "relevance-"

OVER = ("SUCCEEDED", "FAILED", "STOPPED")

POLL_S = 2.0

ANSWER_S = 60.0  # that a request may take

AGENT_WAIT_S = 30.0  # for a process that takes jobs, on a cluster that has just been started

NO_AGENT = (
    "the cluster's head node has no agent that takes jobs: it may still be starting, or another Ray "
    "on that machine has its port, "
    "which the head's dashboard_agent.log then says; run the same command again, or start the head "
    "with another --dashboard-agent-listen-port"
)

KINDS = {kind.exit_code: kind for kind in (RelevanceError, ConfigError, RetryableError, DamagedInputError)}

HEADINGS = ("job", "state", "started", "took")


def run_submit(
    config: RunConfig, console: Console, command: list[str], address: str, again: bool, wait: bool
) -> dict[str, Any]:
    """Submit `relevance <command> --config <this one>`, or find the job that does or did it; with `wait`,
    follow it to its end.

    Errors: that of the job's exit code where it ended with one; ConfigError: the cluster does not let us in;
    RetryableError: it does not answer, or takes no jobs.
    """
    with asking(address) as client:
        name = submit_job(client, config, command, again, console)
        return (
            follow(client, name, console)
            if wait
            else {"job": name, "state": str(client.get_job_status(name))}
        )


def submit_job(client: Any, config: RunConfig, command: list[str], again: bool, console: Console) -> str:
    """The id of the job. One that failed or was stopped is tried anew under the next number, and with `again`
    one that succeeded, too.
    """
    stem = job_stem(config, command)
    jobs = {job.submission_id: job for job in client.list_jobs()}
    number = 1
    while f"{stem}-{number}" in jobs:
        state = str(jobs[f"{stem}-{number}"].status)
        if state not in OVER or (state == "SUCCEEDED" and not again):
            console.say(f"  {stem}-{number} is there already: {state.lower()}")
            return f"{stem}-{number}"
        number += 1
    name = f"{stem}-{number}"
    with tempfile.TemporaryDirectory(prefix="relevance-submit-") as folder:
        write_config(Path(folder) / "config.yaml", config)
        words = ["relevance", command[0], "--config", "config.yaml", *command[1:]]
        try:
            when_there_is_an_agent(
                client.submit_job,
                entrypoint=shlex.join(words),
                submission_id=name,
                # no variables: Ray lets the command in the job add none that are there already
                runtime_env={"working_dir": folder},
                metadata={"command": command[0], "run": config.name},
            )
        except RuntimeError:
            if name not in {job.submission_id for job in client.list_jobs()}:
                raise
            console.say(f"  {name} was submitted by another at the same time")
            return name
    console.say(f"  submitted as {name}")
    return name


def when_there_is_an_agent(submit: Callable[..., Any], **job: Any) -> None:
    """Submit a job. A cluster that has just been started answers before it has a process that takes jobs, and
    says so. RetryableError: it has none after AGENT_WAIT_S.
    """
    deadline_s = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            submit(**job)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline_s:
                raise RetryableError(NO_AGENT) from error
        time.sleep(1)


def job_stem(config: RunConfig, command: list[str]) -> str:
    """A job's id but for its number: the command, the run, and a digest of all that the command is given."""
    digest = json_sha256({"command": command, "config": config.model_dump(mode="json")})
    return f"{PREFIX}{command[0]}-{config.name}-{digest[:12]}"


def write_config(path: Path, config: RunConfig) -> None:
    """The whole config as it was read here, overrides and absolute paths in it."""
    import yaml

    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def run_logs(job: str, console: Console, address: str) -> dict[str, Any]:
    """Print what a job says, to its end. Errors: as of `run_submit`."""
    with asking(address) as client:
        if job not in {one.submission_id for one in client.list_jobs()}:
            raise ConfigError(
                f"{address} has no job {job}; `relevance status --address {address}` lists them"
            )
        return follow(client, job, console)


def follow(client: Any, job: str, console: Console) -> dict[str, Any]:
    """Print a job's output as it comes; at its end its state, or the error of its exit code."""
    shown = 0
    while True:
        info = client.get_job_info(job)  # before its output, or the last of it might be missed
        text = client.get_job_logs(job)
        whole = len(text) if str(info.status) in OVER else text.rfind("\n") + 1
        if whole > shown:
            console.say(text[shown:whole].rstrip("\n"))
            shown = whole
        if str(info.status) in OVER:
            break
        time.sleep(POLL_S)
    if str(info.status) == "SUCCEEDED":
        return {"job": job, "state": "SUCCEEDED"}
    code = info.driver_exit_code
    kind = KINDS.get(code, RetryableError) if str(info.status) == "FAILED" else RetryableError
    ended = f"with exit code {code}" if code is not None else f"({info.message})"
    raise kind(
        f"{job} {str(info.status).lower()} {ended}; its output is above, submit the same command to try anew"
    )


def list_jobs(address: str, console: Console) -> dict[str, Any]:
    """Print a line for each of our jobs, the newest first. Errors: as of `run_submit`."""
    with asking(address) as client:
        jobs = sorted(
            (job for job in client.list_jobs() if (job.submission_id or "").startswith(PREFIX)),
            key=lambda job: -job.start_time,
        )
    found = [
        {
            "job": job.submission_id,
            "state": str(job.status),
            "started_s": job.start_time / 1000,
            "seconds": seconds_of(job),
        }
        for job in jobs
    ]
    console.table(
        [
            HEADINGS,
            *(
                (job["job"], job["state"].lower(), started(job["started_s"]), f"{job['seconds']:.0f} s")
                for job in found
            ),
        ]
    )
    return {"jobs": found}


def seconds_of(job: Any) -> float:
    """That a job took, or has taken so far."""
    return (job.end_time / 1000 if job.end_time else time.time()) - job.start_time / 1000


def started(at_s: float) -> str:
    """A point in time, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))


@contextlib.contextmanager
def asking(address: str) -> Iterator[Any]:
    """Ray's client of jobs, and its errors as ours."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class BoundedClient(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            # or a head that hangs would have us hang
            return super()._do_request(*arguments, **{"timeout": ANSWER_S, **options})

    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{address} is no address of a cluster's dashboard; write it as http://head:8265")
    # what Ray would take in the place of the address that it is given
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield BoundedClient(address)
    except AuthenticationError as error:
        why = str(error).splitlines()[0].rstrip(".")
        remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise ConfigError(f"{address} does not let us in ({why}); {remedy}") from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise RetryableError(
            f"{address} does not do what it is asked ({last_line(error)}); run the same command again"
        ) from error
