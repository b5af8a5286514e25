"""Jobs of a real Ray cluster that lets nobody in without its token."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from jobs.commands.submit import job_stem, submit_job
from jobs.console import Console
from jobs.submit_paths import check_paths
from pipeline.config.loading import build_config, read_config, read_settings
from pipeline.errors import ConfigError, RetryableError
from tests.support.commands import RELEVANCE, last_json, relevance
from tests.support.planted import planted_config, planted_rows, write_config, write_rows
from tests.support.servers import free_port, wait_for_port

TOKEN = "0123456789abcdef" * 2
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Cluster:
    """A head node's dashboard, and commands that have its token."""

    address: str
    environment: dict[str, str]

    def relevance(self, *words: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | changes
        return subprocess.run(
            [*RELEVANCE, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    (folder / "token").write_text(TOKEN)
    programs = str(Path(sys.executable).parent)  # as in an image: the job's shell finds the command
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    words = [
        "start",
        "--head",
        "--port",
        str(free_port()),
        "--dashboard-port",
        str(port),
        "--num-cpus",
        "2",
        "--disable-usage-stats",
    ]
    # every Ray on a machine takes the same one else, and only the first gets it
    words += ["--dashboard-agent-listen-port", str(free_port())]
    short = Path("/tmp") / f"ray-{os.getpid()}"  # sockets below have names of at most 107 letters
    process = subprocess.Popen(
        [RAY, *words, "--include-dashboard", "true", "--temp-dir", str(short), "--block"],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port, process)
        yield Cluster(f"http://127.0.0.1:{port}", environment)
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.e2e
def test_a_job_is_submitted_once_followed_to_its_end_and_found_again(
    finished_run: Any, cluster: Cluster
) -> None:
    root, config, _ = finished_run
    words = ("submit", "score", "--config", str(config))
    first = cluster.relevance(*words, cwd=root)
    job = last_json(first)["job"]
    assert (
        job.startswith("relevance-score-planted-")
        and job.endswith("-1")
        and f"submitted as {job}" in first.stderr
    )
    assert "units to score with version 1" in first.stderr, "what the job says is shown"
    second = cluster.relevance(*words, cwd=root)
    assert (
        last_json(second) == {"job": job, "state": "SUCCEEDED"}
        and f"{job} is there already: succeeded" in second.stderr
    )
    again = last_json(cluster.relevance(*words, "--again", "--no-wait", cwd=root))
    assert again["job"] == job.removesuffix("1") + "2"
    assert last_json(cluster.relevance("logs", again["job"], cwd=root))["state"] == "SUCCEEDED"
    elsewhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_ADDRESS": "127.0.0.1:9"}
    listed = cluster.relevance("status", "--address", cluster.address, cwd=root, **elsewhere)
    assert [one["job"] for one in last_json(listed)["jobs"]] == [again["job"], job]
    assert (
        listed.stdout.splitlines()[0].split() == ["job", "state", "started", "took"]
        and "succeeded" in listed.stdout.splitlines()[1]
    )


@pytest.mark.e2e
def test_a_job_that_fails_ends_the_command_with_its_exit_code_and_is_tried_anew(
    finished_run: Any, cluster: Cluster
) -> None:
    root, config, _ = finished_run
    words = ("submit", "score", "--config", str(config), "--set", f"data.to_score={root / 'not-there-yet'}")
    failed = cluster.relevance(*words, cwd=root)
    assert failed.returncode == 2 and "not-there-yet is not a folder" in failed.stderr
    assert "failed with exit code 2; its output is above" in failed.stderr
    write_rows(
        planted_rows("two", 4, 0, labelled=False), root / "not-there-yet" / "task=two" / "part-0.parquet"
    )
    later = cluster.relevance(*words, "--no-wait", cwd=root)
    assert last_json(later)["job"].endswith("-2")
    assert cluster.relevance("logs", "relevance-nothing-1", cwd=root).returncode == 2


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("token", "why"), [({"RAY_AUTH_TOKEN": "f" * 32}, "Invalid"), ({"RAY_AUTH_MODE": "disabled"}, "Missing")]
)
def test_nobody_gets_in_without_the_token(
    finished_run: Any, cluster: Cluster, token: dict[str, str], why: str
) -> None:
    root, config, _ = finished_run
    for words in (
        ("submit", "score", "--config", str(config)),
        ("logs", "relevance-x-1"),
        ("status", "--address", cluster.address),
    ):
        refused = cluster.relevance(*words, cwd=root, **token)
        assert refused.returncode == 2, refused.stderr
        assert (
            f"does not let us in (Authentication {'failed' if why == 'Invalid' else 'required'}"
            in refused.stderr
            and why in refused.stderr
        )
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in refused.stderr


@pytest.mark.e2e
def test_a_cluster_that_is_away_and_a_command_that_is_none_are_told_apart(finished_run: Any) -> None:
    root, config, _ = finished_run
    away = relevance("submit", "score", "--config", str(config), "--address", "http://127.0.0.1:9", cwd=root)
    assert away.returncode == 3 and "http://127.0.0.1:9 does not do what it is asked" in away.stderr
    nameless = relevance("status", "--address", "head:8265", cwd=root)
    assert nameless.returncode == 2 and "write it as http://head:8265" in nameless.stderr
    for words in (["promote"], ["train", "--logical-date", "2026-01-31"], ["train", "--all-tasks"]):
        wrong = relevance(
            "submit", *words, "--config", str(config), "--address", "http://127.0.0.1:9", cwd=root
        )
        assert wrong.returncode == 2


RELATIVE = [
    ("work_dir", "runs"),
    ("data.judged", "judged"),
    ("data.to_score", "days/{date}"),
    ("scoring.scores", "~/scores"),
    ("registry.promotions", "log"),
    ("gate.reference_profile", "profile.json"),
    ("sources.0.path", "esci"),
    ("backbone.source", "./llama"),
    ("backbone.source", "tiny.gguf"),
    ("registry.tracking_uri", "sqlite:///mlflow.db"),
    ("registry.tracking_uri", "./mlruns"),
]
SHARED = [
    ("data.to_score", "s3://ads/pairs"),
    ("scoring.scores", "/storage/x"),
    ("gate.reference_profile", "champion"),
    ("backbone.source", "org/name"),
    ("backbone.source", "package:llm"),
    ("registry.tracking_uri", "http://mlflow:5000"),
    ("registry.tracking_uri", "sqlite:////storage/mlflow.db"),
    ("registry.tracking_uri", "databricks"),
]


@pytest.mark.parametrize(("setting", "text"), RELATIVE)
def test_a_relative_path_is_not_submitted_whichever_setting_it_is_of(
    tmp_path: Path, setting: str, text: str
) -> None:
    plain = planted_config(tmp_path, "/storage/llama", sources=[{"kind": "esci", "path": "/storage/esci"}])
    path = write_config(tmp_path / "c.yaml", plain)
    check_paths(read_config(path), read_settings(path))
    given = read_settings(path, [f"{setting}={text}"])
    with pytest.raises(ConfigError) as refused:
        check_paths(build_config(given, "test"), given)
    assert (
        f"there are relative paths: {setting} ({text}); write absolute paths that all its machines see, "
        "or s3://"
    ) in str(refused.value)


@pytest.mark.parametrize(("setting", "text"), SHARED)
def test_a_place_that_is_the_same_everywhere_is_submitted(tmp_path: Path, setting: str, text: str) -> None:
    path, override = (
        write_config(tmp_path / "c.yaml", planted_config(tmp_path, "/storage/llama")),
        f"{setting}={text}",
    )
    check_paths(read_config(path, [override]), read_settings(path, [override]))


def test_a_config_that_leaves_its_work_dir_open_is_refused_before_the_cluster_is_asked(
    tmp_path: Path,
) -> None:
    plain = planted_config(tmp_path, "/storage/llama")
    config = write_config(
        tmp_path / "c.yaml", {name: value for name, value in plain.items() if name != "work_dir"}
    )
    nowhere = ("submit", "score", "--config", str(config), "--address", "http://127.0.0.1:9")
    refused = relevance(*nowhere, "--set", "scoring.scores=labels", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert (
        "relative paths: work_dir (not set, so runs of this folder), scoring.scores (labels); write absolute"
    ) in refused.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "labels").exists()
    assert relevance(*nowhere, "--set", f"work_dir={tmp_path}", cwd=tmp_path).returncode == 3, (
        "only the cluster is wanting"
    )
    assert "relative ones are refused" in " ".join(
        relevance("submit", "--help", cwd=tmp_path).stdout.replace("│", " ").split()
    )


class Jobs:
    """A cluster's list of jobs, with nothing behind it."""

    def __init__(self, **states: str) -> None:
        self.states, self.submitted = states, ""

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=state) for name, state in self.states.items()]

    def submit_job(self, submission_id: str, **_: Any) -> None:
        self.submitted = submission_id


@pytest.mark.parametrize(
    ("states", "again", "named", "submitted"),
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
def test_a_job_that_runs_or_succeeded_is_not_submitted_twice(
    tmp_path: Path, states: list[str], again: bool, named: int, submitted: bool
) -> None:
    config = read_config(write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere")))
    stem = job_stem(config, ["score"])
    jobs = Jobs(**{f"{stem}-{number}": state for number, state in enumerate(states, start=1)})
    assert submit_job(jobs, config, ["score"], again, Console()) == f"{stem}-{named}"
    assert jobs.submitted == (f"{stem}-{named}" if submitted else "")


@pytest.mark.parametrize(
    ("refusal", "times", "passes"),
    [("No available agent to submit job", 2, True), ("The job is too large", 1, False)],
)
def test_a_cluster_that_has_just_been_started_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str, times: int, passes: bool
) -> None:
    monkeypatch.setattr("jobs.commands.submit.time.sleep", lambda seconds: None)
    config, refusals = (
        read_config(write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere"))),
        [refusal] * times,
    )

    class Starting(Jobs):
        def submit_job(self, submission_id: str, **job: Any) -> None:
            if refusals:
                raise RuntimeError(refusals.pop())
            super().submit_job(submission_id, **job)

    jobs = Starting()
    with contextlib.nullcontext() if passes else pytest.raises(RuntimeError, match=refusal):
        submit_job(jobs, config, ["score"], False, Console())
    assert bool(jobs.submitted) == passes and not refusals


def test_a_cluster_that_never_has_an_agent_is_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.commands.submit.AGENT_WAIT_S", -1.0)
    config = read_config(write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere")))

    class Agentless(Jobs):
        def submit_job(self, submission_id: str, **job: Any) -> None:
            raise RuntimeError("No available agent to submit job, please try again later.")

    with pytest.raises(
        RetryableError, match="another Ray on that machine has its port.*--dashboard-agent-listen-port"
    ):
        submit_job(Agentless(), config, ["score"], False, Console())


def test_a_job_s_name_follows_from_all_that_the_command_is_given(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere"))
    stems = [
        job_stem(read_config(path, sets), words)
        for sets in ([], ["seed=3"])
        for words in (
            ["score"],
            ["train"],
            ["score", "--logical-date", "2026-01-31"],
            ["score", "--logical-date", "2026-02-01"],
        )
    ]
    assert len(set(stems)) == len(stems) and job_stem(read_config(path), ["score"]) == stems[0]


def test_what_score_is_given_goes_into_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from jobs.cli import app
    from jobs.commands import submit as ray_jobs

    submitted: list[list[str]] = []
    monkeypatch.setattr(
        ray_jobs, "run_submit", lambda config, console, words, *_: submitted.append(words) or {}
    )
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere"))
    given = ["--logical-date", "2026-01-31", "--until", "2026-02-01", "--all-tasks"]
    for words in ([], given):
        CliRunner().invoke(
            app,
            ["submit", "score", "--config", str(path), "--address", "http://head:8265", *words],
            catch_exceptions=False,
        )
    assert submitted == [["score"], ["score", *given]]
