"""Parsed files of infra/."""

import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.places import ROOT

INFRA, CONFIG_PATH = ROOT / "infra", ROOT / "jobs" / "configs" / "production.yaml"
MOUNTED_CONFIG = "/etc/relevance/production.yaml"
FILES = [p for p in sorted(INFRA.rglob("*")) if p.is_file() and "secrets" not in p.parts]
# with continued shell lines joined
TEXTS = {
    str(p.relative_to(INFRA)): p.read_text().replace("\\\n", " ") for p in FILES if p.parent.name != "locks"
}
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
COMMAND = re.compile(r"(?:^|\s)relevance ((?:submit )?[a-z]+(?: --[a-z]\S* [^\s`]+)*)", re.M)
# the expressions that a shell and Airflow replace by a day
YESTERDAY = re.compile(r"\"\$\(date -u -d yesterday \+\\?%F\)\"|\{\{ ds \}\}")
JOINED_LINES = [
    re.sub(r"\n\s+(?=--)", " ", YESTERDAY.sub("2026-01-31", text))
    for name, text in TEXTS.items()
    if not name.endswith(".md")  # a README may use other configs
]
COMMANDS = sorted({found for text in JOINED_LINES for found in COMMAND.findall(text)})


def ray_pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pod templates of head and workers."""
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
    """Return the volume that a pod's first container mounts at `path`, without its name."""
    (name,) = [m["name"] for m in pod["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == path]
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == name]
    return {key: value for key, value in volume.items() if key != "name"}


def command_line(service: dict[str, Any]) -> list[str]:
    """Return the command line of a compose service."""
    return [*service.get("entrypoint", []), *service.get("command", [])]


def flags(service: dict[str, Any]) -> dict[str, str]:
    """Return the long options of a compose service with their values."""
    given = shlex.split(" ".join(command_line(service)).replace("$$(", "$("))
    options = {}
    for word, following in zip(given, [*given[1:], ""], strict=True):
        if word.startswith("--"):
            name, separator, value = word.partition("=")
            options[name] = value if separator else following
    return options
