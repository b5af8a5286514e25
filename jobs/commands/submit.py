"""Commands as jobs of a Ray cluster: submit, follow, list.

A job's id follows from the command and its config, not from the data. A job that runs is found by submitting
its command again. So is one that succeeded, unless the command depends on more than its config
(`is_repeatable`). Ray accepts each id once in the life of a cluster; a retry gets the next number.
"""

import contextlib
import getpass
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.cluster import access_refused, check_address, check_dashboard_token, is_dashboard_address
from jobs.command_run import CommandRun
from jobs.run_texts import ROLLBACK, repetition_advice, repetition_exit_code
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError, summarize_error
from pipeline.runtime.ray_internals import create_job_client, is_missing_agent
from pipeline.storage.filesystem import json_sha256

logger = logging.getLogger(__name__)

JOB_PREFIX = "relevance-"

TERMINAL_STATES = ("SUCCEEDED", "FAILED", "STOPPED")

POLL_S = 2.0

REQUEST_TIMEOUT_S = 60.0

AGENT_WAIT_S = 30.0  # a new cluster answers before its head node has an agent that accepts jobs

NO_AGENT = (
    "cluster accepts no jobs: its head node has no agent; it may still be starting: run the same command "
    "again. If another Ray on that machine has the agent's port (see the head's dashboard_agent.log), start "
    "the head with another --dashboard-agent-listen-port"
)

ERRORS_BY_EXIT_CODE = {
    error.exit_code: error for error in (RelevanceError, ConfigError, RetryableError, DamagedInputError)
}

HEADINGS = ("job", "state", "started", "took")


def run_submit(
    config: RunConfig, run: CommandRun, command: Sequence[str], address: str, again: bool, wait: bool
) -> dict[str, Any]:
    """Submit a command as a job, or find the job that runs or ran it.

    Args:
        config: The config that the command gets.
        run: The run of this command.
        command: The command and its options, without `--config`.
        address: The cluster's dashboard, such as http://head:8265.
        again: Submit a new job even if the last one succeeded.
        wait: Follow the job to its end.

    Raises:
        RelevanceError: The job failed; the class is that of its exit code.
        ConfigError: The cluster refuses the token.
        RetryableError: The cluster does not answer or accepts no jobs.
    """
    if command[0] in ("train", "run"):  # others use the backbone that a bundle was trained on
        check_local_backbone(config)
    with job_client(address) as client:
        job = submit_job(client, config, command, again)
        if not wait:
            state = str(client.get_job_status(job))
            return {"job": job, "state": state, "next": run.suggest("logs", job, "--address", address)}
        follow_job(client, job, command[0])
    return {"job": job, "state": "SUCCEEDED", "next": run.suggest("status", "--address", address)}


def check_local_backbone(config: RunConfig) -> None:
    """Raise ConfigError if the backbone is a model folder on this machine and does not fit the config."""
    if (Path(config.backbone.source) / "config.json").is_file():
        from pipeline.training.backbone_checks import check_backbone

        check_backbone(config.backbone, config.adapter, config.encode, config.tasks)


def run_logs(job: str, run: CommandRun, address: str) -> dict[str, Any]:
    """Print a job's output to its end. Raises the errors of `run_submit`."""
    with job_client(address) as client:
        metadata = {known.submission_id: known.metadata for known in client.list_jobs()}
        if job not in metadata:
            raise ConfigError(
                f"job unknown to {address}: {job}; list its jobs with `relevance status --address {address}`"
            )
        follow_job(client, job, (metadata[job] or {}).get("command", ""))
    return {"job": job, "state": "SUCCEEDED", "next": run.suggest("status", "--address", address)}


def list_jobs(address: str, run: CommandRun) -> dict[str, Any]:
    """Print one line for each job of this project, the newest first. Raises the errors of `run_submit`."""
    with job_client(address) as client:
        ours = [job for job in client.list_jobs() if (job.submission_id or "").startswith(JOB_PREFIX)]
    ours.sort(key=lambda job: job.start_time, reverse=True)
    jobs = [
        {
            "job": job.submission_id,
            "state": str(job.status),
            "started_s": job.start_time / 1000,
            "seconds": job_duration_s(job),
        }
        for job in ours
    ]
    cells = [
        (job["job"], job["state"].lower(), format_utc(job["started_s"]), f"{job['seconds']:.0f} s")
        for job in jobs
    ]
    run.table([HEADINGS, *cells])
    if jobs:
        next_command = run.suggest("logs", jobs[0]["job"], "--address", address)
    else:
        next_command = run.suggest("submit", "--help")
    return {"jobs": jobs, "next": next_command}


def submit_job(client: Any, config: RunConfig, command: Sequence[str], again: bool) -> str:
    """Return the id of the job that runs a command; submit it if there is none.

    A job that failed or was stopped is submitted again under the next number. With `again`, so is one that
    succeeded. Commands that depend on more than their config always are, see `is_repeatable`.

    Raises:
        RelevanceError: A rollback failed or was stopped before; it may have rolled back.
    """
    again = again or is_repeatable(command)
    stem = job_stem(config, command)
    states = {job.submission_id: str(job.status) for job in client.list_jobs()}
    number = 1
    while f"{stem}-{number}" in states:
        job, state = f"{stem}-{number}", states[f"{stem}-{number}"]
        if state not in TERMINAL_STATES or (state == "SUCCEEDED" and not again):
            remedy = "; to run the command once more, add --again" if state == "SUCCEEDED" else ""
            logger.info("  job exists: %s, %s%s", job, state.lower(), remedy)
            return job
        if command[0] == ROLLBACK and not again:
            raise RelevanceError(
                f"rollback {state.lower()}: {job}; {repetition_advice(ROLLBACK)}; --again rolls back anyway"
            )
        number += 1
    job = f"{stem}-{number}"
    with tempfile.TemporaryDirectory(prefix="relevance-submit-") as folder:
        write_config(Path(folder) / "config.yaml", config)
        # the promotion log names who submitted a promotion, not the account of the cluster
        user = f"LOGNAME={getpass.getuser()}"
        words = ["env", user, "relevance", command[0], "--config", "config.yaml", *command[1:]]
        request = {
            "entrypoint": shlex.join(words),
            "submission_id": job,
            # no env_vars: Ray refuses those that the command in the job sets itself
            "runtime_env": {"working_dir": folder},
            "metadata": {"command": command[0], "run": config.name},
        }
        try:
            submit_when_agent_ready(client, request)
        except RuntimeError:
            if job not in {known.submission_id for known in client.list_jobs()}:
                raise
            logger.info("  job exists: %s, submitted by another command at the same time", job)
            return job
    logger.info("  job submitted: %s", job)
    return job


def is_repeatable(command: Sequence[str]) -> bool:
    """Return True if a command that has succeeded is submitted again without being asked to.

    Rows, versions and champion may have changed since, and what is done already is not done twice. A rollback
    is not: the second one would go back one more champion.
    """
    if command[0] == "score":
        return not any(word.startswith("--logical-date") for word in command)
    return command[0] in ("validate", "evaluate", "register", "promote")


def submit_when_agent_ready(client: Any, request: dict[str, Any]) -> None:
    """Submit a job, and wait for a cluster that is still starting.

    Raises:
        RetryableError: The cluster has no agent after AGENT_WAIT_S.
        RuntimeError: The cluster refuses the job for another reason.
    """
    deadline_s = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            client.submit_job(**request)
            return
        except RuntimeError as error:
            if not is_missing_agent(error):
                raise
            if time.monotonic() > deadline_s:
                raise RetryableError(NO_AGENT) from error
        time.sleep(1)


def job_stem(config: RunConfig, command: Sequence[str]) -> str:
    """Return a job's id without its number: command, run name, and a digest of the command and its config."""
    digest = json_sha256({"command": list(command), "config": config.model_dump(mode="json")})
    return f"{JOB_PREFIX}{command[0]}-{config.name}-{digest[:12]}"


def write_config(path: Path, config: RunConfig) -> None:
    """Write a config with its overrides and absolute paths."""
    import yaml

    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def follow_job(client: Any, job: str, command: str) -> None:
    """Print the output of a command's job as it comes, until the job has succeeded.

    Raises:
        RelevanceError: The job failed; the class is that of its exit code. Without one it is RetryableError,
            unless the command must not be repeated.
    """
    num_shown = 0
    while True:
        # the state first, so that no output is lost if the job ends between the two requests
        info = client.get_job_info(job)
        state, output = str(info.status), client.get_job_logs(job)
        num_complete = len(output) if state in TERMINAL_STATES else output.rfind("\n") + 1
        if num_complete > num_shown:
            for line in output[num_shown:num_complete].rstrip("\n").split("\n"):
                logger.info("%s", line)
            num_shown = num_complete
        if state in TERMINAL_STATES:
            break
        time.sleep(POLL_S)
    if state == "SUCCEEDED":
        return
    code = info.driver_exit_code
    unfinished = ERRORS_BY_EXIT_CODE[repetition_exit_code(command)]
    error_class = ERRORS_BY_EXIT_CODE.get(code, unfinished) if state == "FAILED" else unfinished
    reason = f"exit code {code}" if code is not None else info.message
    advice = repetition_advice(command) if error_class is unfinished else "do what it asks for"
    raise error_class(f"job {state.lower()}: {job} ({reason}); its output is above, {advice}")


def job_duration_s(job: Any) -> float:
    """Return the seconds a job took, or has run so far."""
    end_s = job.end_time / 1000 if job.end_time else time.time()
    return float(end_s - job.start_time / 1000)


def format_utc(time_s: float) -> str:
    """Return a point in time as text, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s))


@contextlib.contextmanager
def job_client(address: str) -> Iterator[Any]:
    """Open Ray's job client, and raise its errors as errors of this project."""
    from ray.exceptions import AuthenticationError

    check_address("--address", address)
    if not is_dashboard_address(address):
        raise ConfigError(f"dashboard address not valid: {address}; write it as http://head:8265")
    # Ray prefers this variable to the address that it is given
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        check_dashboard_token(address)
        yield create_job_client(address, REQUEST_TIMEOUT_S)
    except AuthenticationError as error:
        raise access_refused(address, error) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise RetryableError(
            f"request failed at {address}: {summarize_error(error)}; run the same command again"
        ) from error
