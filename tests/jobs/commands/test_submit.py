"""Jobs of a Ray cluster that requires a token."""

import contextlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from jobs.cluster import INSECURE
from jobs.commands.submit import follow_job, job_stem, run_submit, submit_job
from pipeline.config.loading import build_config, read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.runtime.ray_internals import dashboard_requires_token
from tests.support.canaries import WORD, files_with_canaries, plant_canaries
from tests.support.commands import RELEVANCE, last_json
from tests.support.commands import relevance_in_process as relevance
from tests.support.planted import planted_config, planted_rows, write_config, write_rows
from tests.support.servers import free_port, wait_for_port

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Cluster:
    """A head node's dashboard address, and the environment of commands that have its token."""

    address: str
    environment: dict[str, str]

    @property
    def token(self) -> str:
        return Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()

    def relevance(self, *arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | changes
        return subprocess.run(
            [*RELEVANCE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    secrets = plant_canaries(folder / "secrets", folder)
    programs = str(Path(sys.executable).parent)  # the job's shell finds the command, as in an image
    environment = os.environ | {
        **secrets,
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    short = Path("/tmp") / f"ray-{os.getpid()}"  # socket paths have at most 107 characters
    start = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--disable-usage-stats"]
    start += ["--port", str(free_port()), "--include-dashboard", "true", "--dashboard-port", str(port)]
    # the default port is the same for every Ray on a machine
    start += ["--dashboard-agent-listen-port", str(free_port()), "--temp-dir", str(short)]
    process = subprocess.Popen(
        start,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        umask=0,
    )
    try:
        wait_for_port(port, process)
        yield Cluster(f"http://127.0.0.1:{port}", environment)
    finally:
        for started in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.kill()
        process.wait()
        leaks = files_with_canaries(short)
        shutil.rmtree(short, ignore_errors=True)
        assert leaks == [], "Ray's own logs and records"


@pytest.mark.e2e
def test_commands_are_jobs_whose_output_is_shown(finished_run: Any, cluster: Cluster) -> None:
    root, config, _ = finished_run
    scores = root / "scores_of_the_cluster"
    submit = ("submit", "score", "--config", str(config), "--set", f"scoring.scores={scores}")
    first = cluster.relevance(*submit, cwd=root)
    job = last_json(first)["job"]
    assert job.startswith("relevance-score-planted-") and job.endswith("-1")
    assert f"job submitted: {job}" in first.stderr
    assert "units to score with version 1" in first.stderr, "the job's output is shown"
    listing = f"relevance status --address {cluster.address}"
    assert last_json(first) == {"job": job, "state": "SUCCEEDED", "next": listing}
    again = last_json(cluster.relevance(*submit, "--no-wait", cwd=root))
    assert again["job"] == job.removesuffix("1") + "2"
    assert again["next"] == f"relevance logs {again['job']} --address {cluster.address}"
    assert last_json(cluster.relevance("logs", again["job"], cwd=root))["state"] == "SUCCEEDED"
    elsewhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_ADDRESS": "127.0.0.1:9"}
    listed = cluster.relevance("status", "--address", cluster.address, cwd=root, **elsewhere)
    assert [known["job"] for known in last_json(listed)["jobs"]] == [again["job"], job]
    headings, newest = listed.stdout.splitlines()[:2]
    assert headings.split() == ["job", "state", "started", "took"]
    assert "succeeded" in newest
    request = urllib.request.Request(f"{cluster.address}/api/jobs/")
    request.add_header("Authorization", f"Bearer {cluster.token}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = answer.read().decode()
    for text in (told, *(done.stdout + done.stderr for done in (first, listed))):
        assert "relevance-score-planted" in text and WORD not in text
    promoted = cluster.relevance("submit", "promote", "--version", "1", "--config", str(config), cwd=root)
    assert last_json(promoted)["state"] == "SUCCEEDED" and "version 1 is champion" in promoted.stderr
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in scores.rglob("*")}
    assert modes and not any(mode & 0o027 for mode in modes.values()), "the cluster's own mask is 0"


@pytest.mark.e2e
def test_evaluation_as_a_job_goes_on_with_the_threads_it_reserved(
    finished_run: Any, cluster: Cluster
) -> None:
    root, config, _ = finished_run
    run_dir = root / "runs" / "planted"
    manifests = sorted((run_dir / "predictions").glob("*/manifests/*.json"))
    before = {path: path.read_bytes() for path in manifests}
    missing = next(path for path in manifests if json.loads(before[path])["rows_name"] == "test")
    missing.unlink()  # as if the evaluation had been killed before it was published
    macro = json.loads((run_dir / "evaluation.json").read_bytes())["macro_pr_auc"]
    submit = ("submit", "evaluate", "--config", str(config), "--set", "evaluation.threads_per_actor=2")
    done = cluster.relevance(*submit, cwd=root)
    assert last_json(done)["state"] == "SUCCEEDED", done.stderr
    found = json.loads((run_dir / "evaluation.json").read_bytes())["macro_pr_auc"]
    for system in macro:  # other threads add in another order
        assert found[system] == pytest.approx(macro[system], abs=1e-4)
    # Ray gives jobs OMP_NUM_THREADS=1
    again = json.loads(missing.read_bytes())
    assert (again["device"], again["threads"]) == ("cpu", 2) and json.loads(before[missing])["threads"] == 1
    # the canaries are predicted as scoring is set, which has not changed
    after = {path: path.read_bytes() for path in (run_dir / "predictions").glob("*/manifests/*.json")}
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path != missing)


@pytest.mark.e2e
def test_failed_job_gives_its_exit_code_and_is_retried(finished_run: Any, cluster: Cluster) -> None:
    root, config, _ = finished_run
    missing = root / "not-there-yet"
    submit = ("submit", "score", "--config", str(config), "--set", f"data.to_score={missing}")
    failed = cluster.relevance(*submit, cwd=root)
    assert failed.returncode == 2 and "not-there-yet" in failed.stderr
    assert "job failed: relevance-score-planted-" in failed.stderr
    assert "(exit code 2); its output is above" in failed.stderr
    write_rows(planted_rows("two", 4, 0, labeled=False), missing / "task=two" / "part-0.parquet")
    retried = cluster.relevance(*submit, "--no-wait", cwd=root)
    assert last_json(retried)["job"].endswith("-2")
    assert cluster.relevance("logs", "relevance-nothing-1", cwd=root).returncode == 2


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 32}, "Authentication failed: Forbidden: Invalid"),
        ({"RAY_AUTH_MODE": "disabled"}, "Authentication required: Unauthorized: Missing"),
    ],
)
def test_no_command_gets_in_without_the_token(
    finished_run: Any, cluster: Cluster, token: dict[str, str], reason: str
) -> None:
    root, config, _ = finished_run
    assert dashboard_requires_token(cluster.address, 20)
    for arguments in (
        ("submit", "score", "--config", str(config)),
        ("logs", "relevance-x-1"),
        ("status", "--address", cluster.address),
    ):
        refused = cluster.relevance(*arguments, cwd=root, **token)
        assert refused.returncode == 2, refused.stderr
        assert f"access refused by {cluster.address}: {reason}" in refused.stderr
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in refused.stderr


@pytest.mark.e2e
def test_unreachable_cluster_is_retryable_and_bad_usage_is_not(finished_run: Any) -> None:
    root, config, _ = finished_run
    target = ("--config", str(config), "--address", "http://127.0.0.1:9")
    unreachable = relevance("submit", "score", *target, cwd=root)
    assert unreachable.returncode == 3 and "request failed at http://127.0.0.1:9" in unreachable.stderr
    no_scheme = relevance("status", "--address", "head:8265", cwd=root)
    assert no_scheme.returncode == 2 and "write it as http://head:8265" in no_scheme.stderr
    for command in (["history"], ["promote"], ["train", "--logical-date", "2026-01-31"]):
        assert relevance("submit", *command, *target, cwd=root).returncode == 2


def test_local_backbone_that_does_not_fit_is_not_submitted(tmp_path: Path, tiny_llama: Path) -> None:
    settings = planted_config(tmp_path, str(tiny_llama), encode={"max_tokens": 257})
    with pytest.raises(ConfigError, match=r"encode\.max_tokens is 257, the backbone takes 256"):
        run_submit(build_config(settings, "test"), Mock(), ["train"], "http://127.0.0.1:9", False, True)


def test_missing_work_dir_is_refused_without_asking_the_cluster(tmp_path: Path) -> None:
    settings = planted_config(tmp_path, "/storage/llama")
    del settings["work_dir"]
    config = write_config(tmp_path / "c.yaml", settings)
    submit = ("submit", "score", "--config", str(config), "--address", "http://127.0.0.1:9")
    refused = relevance(*submit, "--set", "scoring.scores=labels", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    expected = "work_dir (not set, so runs of this folder), scoring.scores (labels); write absolute paths"
    assert expected in refused.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "labels").exists()
    complete = relevance(*submit, "--set", f"work_dir={tmp_path}", cwd=tmp_path)
    assert complete.returncode == 3, "only the cluster is missing"


class FakeClient:
    """A cluster's list of jobs, without a cluster."""

    def __init__(self, **states: str) -> None:
        self.states, self.submitted = states, ""

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=state) for name, state in self.states.items()]

    def submit_job(self, submission_id: str, **job: Any) -> None:
        self.submitted, self.entrypoint = submission_id, job["entrypoint"]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return read_config(write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere")))


@pytest.mark.parametrize(
    ("states", "again", "number", "is_submitted"),
    [
        ([], False, 1, True),
        (["RUNNING"], False, 1, False),
        (["PENDING"], True, 1, False),
        (["SUCCEEDED"], False, 1, False),
        (["SUCCEEDED"], True, 2, True),
        (["FAILED"], False, 2, True),
        (["STOPPED", "FAILED"], False, 3, True),
        (["FAILED", "RUNNING"], True, 2, False),
    ],
)
def test_running_or_succeeded_job_is_not_submitted_twice(
    config: RunConfig,
    states: list[str],
    again: bool,
    number: int,
    is_submitted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    dates = (["--logical-date", "2026-01-31"], ["--logical-date=2026-01-31"])
    for command in (["train"], ["run"], *(["score", *date] for date in dates)):
        stem = job_stem(config, command)
        client = FakeClient(**{f"{stem}-{count}": state for count, state in enumerate(states, start=1)})
        assert submit_job(client, config, command, again) == f"{stem}-{number}"
        assert client.submitted == (f"{stem}-{number}" if is_submitted else "")
        assert ("add --again" in caplog.messages[-1]) == (states == ["SUCCEEDED"] and not again)


@pytest.mark.parametrize(("state", "number"), [("RUNNING", 1), ("SUCCEEDED", 2), ("FAILED", 2)])
def test_command_that_depends_on_rows_or_versions_is_submitted_again(
    config: RunConfig, state: str, number: int
) -> None:
    for command in (["score", "--all-tasks"], ["validate"], ["evaluate"], ["promote", "--version", "3"]):
        stem = job_stem(config, command)
        assert submit_job(FakeClient(**{f"{stem}-1": state}), config, command, False) == f"{stem}-{number}"


@pytest.mark.parametrize("state", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_rollback_is_not_repeated_unless_asked_for(config: RunConfig, state: str) -> None:
    command = ["rollback", "--reason", "it's worse"]
    stem = job_stem(config, command)
    client = FakeClient(**{f"{stem}-1": state})
    if state == "SUCCEEDED":
        assert submit_job(client, config, command, False) == f"{stem}-1"
    else:
        with pytest.raises(RelevanceError, match="look at `relevance history` first.*--again") as caught:
            submit_job(client, config, command, False)
        assert caught.value.exit_code == 1
    assert client.submitted == ""
    assert submit_job(client, config, command, True) == client.submitted == f"{stem}-2"


@pytest.mark.parametrize(("command", "exit_code"), [("score", 3), ("rollback", 1)])
def test_job_that_was_stopped_is_retryable_if_it_may_be_repeated(command: str, exit_code: int) -> None:
    client = Mock()
    client.get_job_info.return_value = SimpleNamespace(status="STOPPED", driver_exit_code=None, message="")
    client.get_job_logs.return_value = ""
    with pytest.raises(RelevanceError, match="job stopped") as caught:
        follow_job(client, "relevance-x-1", command)
    assert caught.value.exit_code == exit_code


def test_job_runs_the_command_for_its_submitter(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann lee")
    client = FakeClient()
    submit_job(client, config, ["rollback", "--reason", "it's worse"], False)
    command = ["relevance", "rollback", "--config", "config.yaml", "--reason", "it's worse"]
    assert shlex.split(client.entrypoint) == ["env", "LOGNAME=ann lee", *command]


@pytest.mark.parametrize(
    ("refusal", "times", "is_submitted"),
    [("No available agent to submit job", 2, True), ("The job is too large", 1, False)],
)
def test_starting_cluster_is_waited_for(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, refusal: str, times: int, is_submitted: bool
) -> None:
    monkeypatch.setattr("jobs.commands.submit.time.sleep", lambda seconds: None)
    refusals = [refusal] * times

    class StartingCluster(FakeClient):
        def submit_job(self, submission_id: str, **job: Any) -> None:
            if refusals:
                raise RuntimeError(refusals.pop())
            super().submit_job(submission_id, **job)

    client = StartingCluster()
    with contextlib.nullcontext() if is_submitted else pytest.raises(RuntimeError, match=refusal):
        submit_job(client, config, ["score"], False)
    assert bool(client.submitted) == is_submitted and not refusals


def test_cluster_without_an_agent_is_reported(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.commands.submit.AGENT_WAIT_S", -1.0)

    class AgentlessCluster(FakeClient):
        def submit_job(self, submission_id: str, **job: Any) -> None:
            raise RuntimeError("No available agent to submit job, please try again later.")

    with pytest.raises(RetryableError, match="head node has no agent.*--dashboard-agent-listen-port"):
        submit_job(AgentlessCluster(), config, ["score"], False)


def test_job_id_depends_on_command_and_config(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere"))
    commands = (
        ["score"],
        ["train"],
        ["score", "--logical-date", "2026-01-31"],
        ["score", "--logical-date", "2026-02-01"],
    )
    stems = [
        job_stem(read_config(path, overrides), command)
        for overrides in ([], ["seed=3"])
        for command in commands
    ]
    assert len(set(stems)) == len(stems)
    assert job_stem(read_config(path), ["score"]) == stems[0]


def test_options_of_the_command_are_part_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from jobs.cli import app

    submitted: list[list[str]] = []

    def record_command(config: RunConfig, run: Any, command: list[str], *_: Any) -> dict[str, Any]:
        submitted.append(command)
        return {}

    monkeypatch.setattr("jobs.commands.submit.run_submit", record_command)
    monkeypatch.setenv(INSECURE, "0")  # the option sets it
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere"))
    target = ["--config", str(path), "--address", "http://head:8265"]
    commands = [
        ["score"],
        ["score", "--logical-date", "2026-01-31", "--until", "2026-02-01", "--all-tasks"],
        ["evaluate", "--version", "3", "--against=2"],
        ["promote", "--version", "3", "--override", "--reason", "it is better"],
    ]
    for words in commands:
        CliRunner().invoke(app, ["submit", *words, *target], catch_exceptions=False)
    for words in (["score"], ["promote", "--version", "3"]):
        CliRunner().invoke(app, ["submit", *words, *target, "--insecure"], catch_exceptions=False)
    assert submitted == [*commands, ["score", "--insecure"], ["promote", "--version", "3"]]
