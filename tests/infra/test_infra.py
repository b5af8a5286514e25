"""Files of infra/: everything they name exists and fits the production config."""

import importlib
import re
import shlex
from typing import Any

import pytest
import typer.main
import yaml

from jobs.cli import app
from jobs.submit_paths import check_paths
from pipeline.config.loading import read_config, read_settings
from tests.support.infra_files import (
    CLUSTERS,
    COMMAND,
    COMMANDS,
    COMPOSE,
    CONFIG_PATH,
    INFRA,
    JOBS,
    MOUNTED_CONFIG,
    OBJECTS,
    PYPROJECT,
    RAY,
    SERVICES,
    STAGES,
    TARGETS,
    TEXTS,
    command_line,
    flags,
    mounted,
    ray_pods,
)
from tests.support.pinned_versions import pinned_version
from tests.support.places import ROOT

# --- commands and config


@pytest.mark.parametrize("command", COMMANDS)
def test_every_relevance_command_is_valid(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://ray-head:8265")
    name, *options = shlex.split(command)
    context = typer.main.get_command(app).commands[name].make_context(name, options)
    typed = {str(CONFIG_PATH.relative_to(ROOT))} if name == "submit" else set()  # outside the pods
    assert str(context.params["config"]) in {MOUNTED_CONFIG, *typed}
    overrides = context.params["overrides"] or []
    check_paths(read_config(CONFIG_PATH, overrides), read_settings(CONFIG_PATH, overrides))


def test_each_stage_has_a_job_or_the_standing_cluster() -> None:
    assert {name: COMMAND.search(job["entrypoint"])[1].split()[0] for name, job in JOBS.items()} == {
        "rayjob-train.yaml": "train",
        "rayjob-score.yaml": "score",
        "raycronjob-score.yaml": "score",
    }
    assert {"submit evaluate", "submit register", "submit promote"} <= {
        " ".join(found.split()[:2]) for found in COMMAND.findall(TEXTS["kuberay/raycluster.yaml"])
    }
    assert command_line(SERVICES["relevance"])[-4:] == ["relevance", "train", "--config", MOUNTED_CONFIG]


def test_config_is_mounted_where_commands_read_it() -> None:
    (source,) = [v.split(":")[0] for v in SERVICES["ray-head"]["volumes"] if f":{MOUNTED_CONFIG}" in v]
    (generator,) = OBJECTS["kustomization.yaml"]["configMapGenerator"]
    assert (INFRA / source).resolve() == CONFIG_PATH == (INFRA / "kuberay" / generator["files"][0]).resolve()
    assert OBJECTS["kustomization.yaml"]["generatorOptions"]["disableNameSuffixHash"] is True
    for cluster in CLUSTERS.values():
        assert mounted(cluster["headGroupSpec"]["template"], "/etc/relevance") == {
            "configMap": {"name": generator["name"]}
        }


def test_config_paths_are_on_shared_storage() -> None:
    config = read_config(CONFIG_PATH)
    for path in (config.run_dir, config.judged_location, config.to_score_location, config.promotions_dir):
        assert str(path).startswith("/storage/")
    assert not config.promotions_dir.is_relative_to(config.run_dir), "the score job has another run name"
    assert "storage:/storage" in SERVICES["ray-head"]["volumes"]
    claim = OBJECTS["storage.yaml"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in (pod for cluster in CLUSTERS.values() for pod in ray_pods(cluster)):
        assert mounted(pod, "/storage") == {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}


def test_clusters_have_room_for_every_process() -> None:
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
            slots = 0  # each process is in one pod
            for group in cluster["workerGroupSpecs"]:
                # KubeRay reports these to Ray
                limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
                by_gpu = int(limits.get("nvidia.com/gpu", 0)) // gpus if gpus else processes
                slots += group["replicas"] * min(int(limits["cpu"]) // cpus, by_gpu)
            assert slots >= processes


# --- names and files


def test_compose_declares_exactly_what_its_services_use() -> None:
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


def test_kustomization_lists_every_object_but_the_jobs() -> None:
    kustomization = OBJECTS["kustomization.yaml"]
    assert set(kustomization["resources"]) == set(OBJECTS) - set(RAY) - {"kustomization.yaml"}
    named = {o["metadata"]["namespace"] for o in RAY.values()} | {
        OBJECTS["namespace.yaml"]["metadata"]["name"]
    }
    assert named == {kustomization["namespace"]}


def test_dockerfile_copies_exactly_what_the_builder_gets() -> None:
    ignored = TEXTS["Dockerfile.dockerignore"].splitlines()
    sent = {line[1:].removesuffix("/**") for line in ignored if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.*)$", TEXTS["Dockerfile"], re.M)
    copied = {word for line in lines for word in line.split()[:-1]}
    assert "*" in ignored and copied == sent
    assert not sorted(name for name in copied if not (ROOT / name).exists())
    assert {
        name.rstrip("*") for name in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    } <= copied
    assert set(re.findall(r"[-,]from=(\w[\w-]*)", TEXTS["Dockerfile"])) <= set(STAGES)


def images(node: Any) -> set[str]:
    """Return every value of a key `image`, at any depth of a parsed file."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {node["image"]} if isinstance(node, dict) and "image" in node else set()
    return own.union(*(images(child) for child in children))


def test_images_are_built_here_or_pinned() -> None:
    built = {f"ads-relevance:{PYPROJECT['project']['version']}-{target}" for target in TARGETS}
    files = {name: images(list(yaml.safe_load_all(TEXTS[name]))) for name in TEXTS if name.endswith(".yaml")}
    dockerfile = TEXTS["Dockerfile"]
    references = r"^(?:FROM|# *syntax=)(?: *--\S+)* *(\S+)|--from=(\S+)|[-,]from=([^,\s]+)"
    named = {"".join(found) for found in re.findall(references, dockerfile, re.M)}
    files["Dockerfile"] = named - STAGES.keys()
    floating = {
        f"{file}: {image}"
        for file, found in files.items()
        for image in found - built
        if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)
    }
    assert not floating
    assert files["Dockerfile"] and files["compose.yaml"] - built, "no image was found"


def test_services_build_the_image_that_they_run() -> None:
    for service in (s for s in SERVICES.values() if "build" in s):
        context = INFRA / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).resolve() == INFRA / "Dockerfile"
        assert service["image"].endswith(f"-{service['build']['target']}")


def test_versions_match_the_locks() -> None:
    assert {cluster["rayVersion"] for cluster in CLUSTERS.values()} == {pinned_version("ray")}
    (python,) = re.findall(r"^FROM python:([\d.]+)", TEXTS["Dockerfile"], re.M)
    assert PYPROJECT["project"]["requires-python"].startswith(f">={python},")


@pytest.mark.parametrize("call", ["mlflow server", "ray start", "ray job submit"])
def test_installed_program_knows_every_flag(call: str) -> None:
    program, *subcommands = call.split()
    command = importlib.import_module({"mlflow": "mlflow.cli", "ray": "ray.scripts.scripts"}[program]).cli
    for word in subcommands:
        command = command.commands[word]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    lines = [
        *TEXTS.values(),
        *(" ".join(command_line(service)).replace("\\\n", " ") for service in SERVICES.values()),
    ]
    options = [found for line in lines for found in re.findall(rf"\b{call}\b(.*?)(?: -- |$)", line, re.M)]
    given = {flag for found in options for flag in re.findall(r"--[a-z-]+", found)}
    assert given and given <= known


def test_ray_manifests_describe_the_same_cluster() -> None:
    assert set(CLUSTERS) == {
        "raycluster.yaml",
        "rayjob-train.yaml",
        "rayjob-score.yaml",
        "raycronjob-score.yaml",
    }
    assert all(cluster == CLUSTERS["raycluster.yaml"] for cluster in CLUSTERS.values())


@pytest.mark.parametrize("name", JOBS)
def test_job_has_a_deadline_and_frees_its_cluster(name: str) -> None:
    job = JOBS[name]
    assert 0 < job["activeDeadlineSeconds"] <= 2 * 86_400 and 0 < job["backoffLimit"] <= 3
    assert job["shutdownAfterJobFinishes"] is True and 0 < job["ttlSecondsAfterFinished"] <= 86_400


def test_each_image_names_its_accelerator() -> None:
    for target in ("cpu", "cuda"):
        assert re.findall(r"DS_ACCELERATOR=(\w+)", STAGES[target]) == [target]
