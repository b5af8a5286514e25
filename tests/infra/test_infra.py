"""The promises of infra/: what it runs exists, fits the production config, and lets nobody in without a token
or a password.
"""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from jobs.cli import app
from jobs.submit_paths import check_paths
from pipeline.config.loading import read_config, read_settings
from tests.support.places import ROOT

INFRA, CONFIG_PATH = ROOT / "infra", ROOT / "jobs" / "configs" / "production.yaml"
MOUNTED_CONFIG = "/etc/relevance/production.yaml"
FILES = [p for p in sorted(INFRA.rglob("*")) if p.is_file() and "secrets" not in p.parts]
# shell lines made whole
TEXTS = {str(p.relative_to(INFRA)): p.read_text().replace("\\\n", " ") for p in FILES}
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OBJECTS = {p.name: yaml.safe_load(p.read_text()) for p in FILES if p.parent.name == "kuberay"}
RAY = {name: o for name, o in OBJECTS.items() if o["apiVersion"] == "ray.io/v1"}
JOBS = {name: o["spec"].get("jobTemplate", o["spec"]) for name, o in RAY.items() if o["kind"] != "RayCluster"}
CLUSTERS = {name: JOBS[name]["rayClusterSpec"] if name in JOBS else o["spec"] for name, o in RAY.items()}
CRONJOB = yaml.safe_load((INFRA / "schedules" / "cronjob.yaml").read_text())
STAGES = {
    m[1]: m[2]
    for m in re.finditer(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", TEXTS["Dockerfile"], re.M | re.S)
}
TARGETS = ("cpu", "cuda", "mlflow")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
COMMAND = re.compile(r"(?:^|\s)relevance ((?:submit )?[a-z]+(?: --[a-z]\S* [^\s`]+)*)", re.M)
# what a shell, or Airflow, puts a day in place of
YESTERDAY = re.compile(r"\"\$\(date -u -d yesterday \+\\?%F\)\"|\{\{ ds \}\}")
ON_ONE_LINE = [re.sub(r"\n\s+(?=--)", " ", YESTERDAY.sub("2026-01-31", text)) for text in TEXTS.values()]
COMMANDS = sorted({found for text in ON_ONE_LINE for found in COMMAND.findall(text)})


def ray_pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of head and workers."""
    return [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]


PODS = [
    pytest.param(pod, id=f"{name}-{i}")
    for name, cluster in CLUSTERS.items()
    for i, pod in enumerate(ray_pods(cluster))
]
SUBMITTERS = [
    *(pytest.param(job["submitterPodTemplate"], id=f"{name}-submitter") for name, job in JOBS.items()),
    pytest.param(CRONJOB["spec"]["jobTemplate"]["spec"]["template"], id="cronjob"),
]


def mounted(pod: dict[str, Any], path: str) -> dict[str, Any]:
    """What a pod's first container sees at `path`: the volume without its name."""
    (name,) = [m["name"] for m in pod["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == path]
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == name]
    return {key: value for key, value in volume.items() if key != "name"}


def words(service: dict[str, Any]) -> list[str]:
    """The command line of a compose service."""
    return [*service.get("entrypoint", []), *service.get("command", [])]


def flags(service: dict[str, Any]) -> dict[str, str]:
    """Long options of a compose service that take a value."""
    given = shlex.split(" ".join(words(service)).replace("$$(", "$("))
    pairs = [
        word.split("=") if "=" in word else [word, following]
        for word, following in zip(given, [*given[1:], ""], strict=True)
    ]
    return {name: value for name, value in pairs if name.startswith("--")}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, scalar) of everything in parsed YAML."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, value


# --- commands and config


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_infra_is_one_that_relevance_takes(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://ray-head:8265")
    name, *options = shlex.split(command)
    context = typer.main.get_command(app).commands[name].make_context(name, options)
    assert str(context.params["config"]) == MOUNTED_CONFIG
    overrides = context.params["overrides"] or []
    check_paths(read_config(CONFIG_PATH, overrides), read_settings(CONFIG_PATH, overrides))


def test_jobs_train_and_score_and_the_standing_cluster_does_what_lies_between() -> None:
    assert {name: COMMAND.search(job["entrypoint"])[1].split()[0] for name, job in JOBS.items()} == {
        "rayjob-train.yaml": "train",
        "rayjob-score.yaml": "score",
        "raycronjob-score.yaml": "score",
    }
    assert {"evaluate", "register", "promote"} <= {
        found.split()[0] for found in COMMAND.findall(TEXTS["kuberay/raycluster.yaml"])
    }
    assert words(SERVICES["relevance"])[-4:] == ["relevance", "train", "--config", MOUNTED_CONFIG]


def test_the_config_lies_where_the_commands_look_for_it() -> None:
    (source,) = [v.split(":")[0] for v in SERVICES["ray-head"]["volumes"] if f":{MOUNTED_CONFIG}" in v]
    (generator,) = OBJECTS["kustomization.yaml"]["configMapGenerator"]
    assert (INFRA / source).resolve() == CONFIG_PATH == (INFRA / "kuberay" / generator["files"][0]).resolve()
    assert OBJECTS["kustomization.yaml"]["generatorOptions"]["disableNameSuffixHash"] is True
    for cluster in CLUSTERS.values():
        assert mounted(cluster["headGroupSpec"]["template"], "/etc/relevance") == {
            "configMap": {"name": generator["name"]}
        }


def test_all_that_the_config_reads_and_writes_is_on_storage_that_every_worker_sees() -> None:
    config = read_config(CONFIG_PATH)
    for path in (config.run_dir, config.judged_dir, config.to_score_place, config.promotions_dir):
        assert path.is_relative_to("/storage")
    assert not config.promotions_dir.is_relative_to(config.run_dir)  # the score job is a run of another name
    assert "storage:/storage" in SERVICES["ray-head"]["volumes"]
    claim = OBJECTS["storage.yaml"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in (pod for cluster in CLUSTERS.values() for pod in ray_pods(cluster)):
        assert mounted(pod, "/storage") == {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}


def test_clusters_hold_every_process_that_the_config_asks_for() -> None:
    config = read_config(CONFIG_PATH)
    training, scoring, head = config.training, config.scoring, flags(SERVICES["ray-head"])
    (device,) = SERVICES["ray-head"]["deploy"]["resources"]["reservations"]["devices"]
    assert int(head["--num-gpus"]) == device["count"]
    for processes, cpus, gpus in [
        (training.num_workers, training.threads_per_worker, int(training.use_gpu)),
        (scoring.num_actors, scoring.threads_per_actor, int(scoring.use_gpu)),
    ]:
        assert processes * cpus <= int(head["--num-cpus"]) and processes * gpus <= int(head["--num-gpus"])
        for cluster in CLUSTERS.values():
            places = 0  # a process lies in one pod
            for group in cluster["workerGroupSpecs"]:
                # what KubeRay tells Ray
                limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
                by_gpu = int(limits.get("nvidia.com/gpu", 0)) // gpus if gpus else processes
                places += group["replicas"] * min(int(limits["cpu"]) // cpus, by_gpu)
            assert places >= processes


# --- what is named is there


def test_compose_declares_all_that_its_services_use_and_uses_all_that_it_declares() -> None:
    used: dict[str, set[str]] = {"volumes": set(), "secrets": set(), "networks": set()}
    for service in SERVICES.values():
        sources = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert all((INFRA / source).is_file() for source in sources if source.startswith("."))
        secrets = {s["source"] if isinstance(s, dict) else s for s in service.get("secrets", [])}
        assert set(re.findall(r"/run/secrets/([\w-]+)", yaml.safe_dump(service, width=10_000))) <= secrets
        used["volumes"] |= {source for source in sources if not source.startswith(".")}
        used["secrets"] |= secrets
        used["networks"] |= set(service["networks"])
        for other, wait in service.get("depends_on", {}).items():
            assert wait == {"condition": "service_healthy"} and "healthcheck" in SERVICES[other]
    assert {kind: set(COMPOSE[kind]) for kind in used} == used


def test_kustomization_lists_all_that_stands_before_a_job_in_one_namespace() -> None:
    kustomization = OBJECTS["kustomization.yaml"]
    assert set(kustomization["resources"]) == set(OBJECTS) - set(RAY) - {"kustomization.yaml"}
    named = {o["metadata"]["namespace"] for o in RAY.values()} | {
        OBJECTS["namespace.yaml"]["metadata"]["name"]
    }
    assert named == {kustomization["namespace"]}


def test_dockerfile_copies_only_what_is_there_and_is_sent_to_the_builder() -> None:
    ignored = TEXTS["Dockerfile.dockerignore"].splitlines()
    sent = {line[1:].removesuffix("/**") for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", TEXTS["Dockerfile"], re.M)
        for word in line.split()[:-1]
    }
    assert "*" in ignored and copied == sent
    assert not sorted(name for name in copied if not (ROOT / name).exists())
    assert {package.split(".")[0] for package in PYPROJECT["tool"]["setuptools"]["packages"]} <= copied
    assert set(re.findall(r"[-,]from=(\w[\w-]*)", TEXTS["Dockerfile"])) <= set(STAGES)


def test_images_are_built_here_or_pinned() -> None:
    built = {f"ads-relevance:{PYPROJECT['project']['version']}-{target}" for target in TARGETS}
    templates = [p.values[0] for p in (*PODS, *SUBMITTERS)]
    assert {c["image"] for pod in templates for c in pod["spec"]["containers"]} <= built
    assert {s["image"] for s in SERVICES.values()} - built == {"postgres:17-bookworm"}
    for service in (s for s in SERVICES.values() if "build" in s):
        assert (
            INFRA / service["build"]["context"] / service["build"]["dockerfile"]
        ).resolve() == INFRA / "Dockerfile"
        assert service["image"].endswith(f"-{service['build']['target']}")


def test_versions_are_those_of_the_constraints() -> None:
    dockerfile = TEXTS["Dockerfile"]
    assert (
        set(re.findall(r"torch==([\d.]+)", dockerfile)) == {PINS["torch"]}
        and "+cpu" in STAGES["libraries-cpu"]
    )
    assert re.findall(r"mlflow\[auth]==([\d.]+)", dockerfile) == [PINS["mlflow"]]
    assert {cluster["rayVersion"] for cluster in CLUSTERS.values()} == {PINS["ray"]}
    assert all(
        "-c constraints.txt" in line or "--no-deps" in line
        for line in re.findall(r"pip install (.*)", dockerfile)
    )
    (python,) = re.findall(r"^FROM python:([\d.]+)", dockerfile, re.M)
    assert PYPROJECT["project"]["requires-python"].startswith(f">={python},")


@pytest.mark.parametrize("call", ["mlflow server", "ray start", "ray job submit"])
def test_the_installed_version_knows_every_flag_that_infra_gives_it(call: str) -> None:
    program, *subcommands = call.split()
    command = importlib.import_module({"mlflow": "mlflow.cli", "ray": "ray.scripts.scripts"}[program]).cli
    for word in subcommands:
        command = command.commands[word]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    lines = [
        *TEXTS.values(),
        *(" ".join(words(service)).replace("\\\n", " ") for service in SERVICES.values()),
    ]
    options = [found for line in lines for found in re.findall(rf"\b{call}\b(.*?)(?: -- |$)", line, re.M)]
    given = {flag for found in options for flag in re.findall(r"--[a-z-]+", found)}
    assert given and given <= known


def test_the_ray_manifests_describe_one_cluster() -> None:
    assert set(CLUSTERS) == {
        "raycluster.yaml",
        "rayjob-train.yaml",
        "rayjob-score.yaml",
        "raycronjob-score.yaml",
    }
    assert all(cluster == CLUSTERS["raycluster.yaml"] for cluster in CLUSTERS.values())


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_by_itself_and_gives_its_cluster_back(name: str) -> None:
    job = JOBS[name]
    assert 0 < job["activeDeadlineSeconds"] <= 2 * 86_400 and 0 < job["backoffLimit"] <= 3
    assert job["shutdownAfterJobFinishes"] is True and 0 < job["ttlSecondsAfterFinished"] <= 86_400


# --- schedules


def dated(command: str) -> dict[str, Any]:
    """What a command line of a schedule asks for."""
    name, *options = shlex.split(command)
    return dict(typer.main.get_command(app).commands[name].make_context(name, options).params)


def airflow_commands(
    monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> tuple[dict[str, Any], list[list[str]], list[Exception]]:
    """(what the DAG is given, the commands that its task runs on 2026-01-31, what they raise), with stand-ins
    for Airflow's classes.
    """
    given: dict[str, Any] = {}
    ran: list[list[str]] = []
    raised: list[Exception] = []
    errors = {name: type(name, (Exception,), {}) for name in ("AirflowException", "AirflowFailException")}

    class Dag:
        def __init__(self, name: str, **settings: Any) -> None:
            given.update(settings, name=name)

        def __enter__(self) -> "Dag":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def operator(python_callable: Any, op_kwargs: dict[str, str], task_id: str) -> None:
        try:
            python_callable(
                **{name: value.replace("{{ ds }}", "2026-01-31") for name, value in op_kwargs.items()}
            )
        except Exception as error:
            raised.append(error)

    interval = lambda cron, timezone: (cron, timezone)  # noqa: E731
    contents = {
        "airflow": {},
        "airflow.sdk": {"DAG": Dag, "CronDataIntervalTimetable": interval},
        "airflow.sdk.exceptions": errors,
        "airflow.providers": {},
        "airflow.providers.standard": {},
        "airflow.providers.standard.operators": {},
        "airflow.providers.standard.operators.python": {"PythonOperator": operator},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        subprocess, "run", lambda command: ran.append(command) or types.SimpleNamespace(returncode=exit_code)
    )
    exec(compile(TEXTS["schedules/airflow_dag.py"], "airflow_dag.py", "exec"), {"__name__": "dag"})
    return given, ran, raised


def test_all_schedules_run_one_idempotent_command_for_the_day_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = subprocess.run
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://ray-head:8265")
    (cron,) = [
        line for line in TEXTS["schedules/crontab"].splitlines() if re.match(r"[\d*]+( [\d*]+){4} ", line)
    ]
    _, airflow, _ = airflow_commands(monkeypatch, 0)
    lines = {
        "cron": cron.split(" ", 5)[5],
        "airflow": shlex.join(airflow[0]),
        "kubernetes": CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][0],
        "kuberay": JOBS["raycronjob-score.yaml"]["entrypoint"],
    }
    for kind, line in lines.items():
        found = dated(YESTERDAY.sub("2026-01-31", line).removeprefix("relevance "))
        assert str(found["config"]) == MOUNTED_CONFIG and found["logical_date"] == "2026-01-31", kind
        assert found["overrides"] == ["name=production-scoring", "data.to_score=/storage/rows/{date}"], kind
        assert not any(found.get(name) for name in ("until", "dry_run", "again", "no_wait")), kind
    (tmp_path / "relevance").write_text("#!/bin/sh\necho $*\n")
    (tmp_path / "relevance").chmod(0o755)
    for kind in ("cron", "kubernetes", "kuberay"):
        line = lines[kind].replace("\\%", "%")  # as cron hands it on
        done = shell(
            ["/bin/sh", "-c", line],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        assert f"data.to_score=/storage/rows/{{date}} --logical-date {yesterday}" in done.stdout, kind
    assert "\\%F" in cron and all("\\%" not in line for kind, line in lines.items() if kind != "cron"), (
        "% is special to cron alone"
    )


def test_schedules_are_daily_in_utc_one_run_at_a_time_and_retry_only_what_may_succeed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, _, raised = airflow_commands(monkeypatch, 3)
    assert type(raised[0]).__name__ == "AirflowException"
    for code in (1, 2, 4):
        assert type(airflow_commands(monkeypatch, code)[2][0]).__name__ == "AirflowFailException"
    spec, job = CRONJOB["spec"], CRONJOB["spec"]["jobTemplate"]["spec"]
    ray = OBJECTS["raycronjob-score.yaml"]["spec"]
    assert given["schedule"] == ("15 3 * * *", "UTC") and {spec["schedule"], ray["schedule"]} == {
        "15 3 * * *"
    }
    assert spec["timeZone"] == ray["timeZone"] == "Etc/UTC"
    assert given["max_active_runs"] == 1 and spec["concurrencyPolicy"] == "Forbid"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "submit", "operator": "In", "values": [1, 2, 4]},
    }
    assert job["backoffLimit"] == given["default_args"]["retries"] == 3
    assert JOBS["raycronjob-score.yaml"]["backoffLimit"] == 1, (
        "it starts a cluster anew for what was refused, too"
    )
    assert spec["startingDeadlineSeconds"] <= 20 * 3600, "or it would begin on another day"


# --- who gets in


def test_ray_starts_nowhere_without_a_token() -> None:
    with_ray = {
        name
        for name, service in SERVICES.items()
        if "ray" in words(service) or "ray start" in " ".join(words(service))
    }
    assert with_ray == {"ray-head", "relevance"}
    for name in with_ray:
        assert SERVICES[name]["environment"] == {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray-token",
        }
    assert all(cluster["authOptions"] == {"mode": "token"} for cluster in CLUSTERS.values())
    assert re.search(r"^ENV .*\bRAY_AUTH_MODE=token\b", STAGES["runtime"], re.M)


def test_ports_are_published_on_loopback_alone_and_the_database_nowhere() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "ray-head": ["127.0.0.1:8265:8265"]}
    assert not {"network_mode", "privileged"} & {path[-1] for path, _ in leaves(SERVICES)}
    assert SERVICES["postgres"]["networks"] == ["database"] and COMPOSE["networks"]["database"] == {
        "internal": True
    }
    assert not {"hostPort", "hostNetwork", "serviceType", "enableIngress"} & {
        path[-1] for path, _ in leaves(RAY)
    }


def test_mlflow_asks_for_an_account_and_answers_to_the_address_of_the_config() -> None:
    given, rights = flags(SERVICES["mlflow"]), TEXTS["mlflow-auth.ini"]
    host = str(read_config(CONFIG_PATH).registry.tracking_uri).removeprefix("http://")
    assert given["--app-name"] == "basic-auth" and "--disable-security-middleware" not in given
    assert host == f"mlflow:{given['--port']}"
    assert host in given["--allowed-hosts"].split(",") and "*" not in given["--allowed-hosts"]
    assert (
        f"database_uri = {given['--backend-store-uri']}" in rights
        and "default_permission = NO_PERMISSIONS" in rights
    )
    assert (
        "--serve-artifacts" in given
        and f"mlartifacts:{given['--artifacts-destination']}" in SERVICES["mlflow"]["volumes"]
    )


def test_no_secret_stands_in_a_file_or_in_the_environment_of_a_container() -> None:
    for where, text in TEXTS.items():
        assert not re.search(r"\b[0-9a-fA-F]{32,}\b|PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@", text), where
        for name, value in re.findall(
            r"\b([A-Z_]*(?:PASSWORD|TOKEN|SECRET|KEY)[A-Z_]*)\s*[:=]\s*(\S+)", text
        ):
            assert value.startswith(("/run/secrets/", '"$$(cat', "infra/secrets/")), f"{where}: {name}"
        for name, value in re.findall(r"^\s*(\w*password\w*)\s*[:=]\s*(\S+)", text, re.M):
            assert value == "{file:", f"{where}: {name}"
    assert "Secret" not in {o["kind"] for o in OBJECTS.values()}
    # secrets come as files, RAY_AUTH_* from KubeRay
    assert not [path for path, _ in leaves(RAY) if {"env", "envFrom"} & set(path)]
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())
    assert TEXTS[".gitignore"].split() == ["/secrets/"]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_reads_its_password_from_a_file_that_only_its_user_may_open(pod: dict[str, Any]) -> None:
    assert mounted(pod, "/home/relevance/.mlflow") == {
        "secret": {"secretName": "mlflow-credentials", "defaultMode": 0o400}
    }


@pytest.mark.parametrize("pod", [*PODS, *SUBMITTERS])
def test_a_pod_runs_as_the_ordinary_user_of_its_image_behind_the_network_policy(pod: dict[str, Any]) -> None:
    spec, policy = pod["spec"], OBJECTS["networkpolicy.yaml"]["spec"]
    user = f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    assert (
        all(re.findall(r"^USER (.*)$", STAGES[target], re.M) == [user] for target in TARGETS)
        and user.split(":")[0] != "0"
    )
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all("podSelector" in peer for rule in policy["ingress"] for peer in rule["from"])
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_each_image_names_the_accelerator_that_its_workers_use() -> None:
    for target in ("cpu", "cuda"):
        assert re.findall(r"DS_ACCELERATOR=(\w+)", STAGES[target]) == [target]
