"""Access control in infra/: tokens, passwords, unprivileged users."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config.loading import read_config
from tests.support.infra_files import (
    CLUSTERS,
    COMPOSE,
    CONFIG_PATH,
    OBJECTS,
    PODS,
    RAY,
    SERVICES,
    STAGES,
    SUBMITTERS,
    TARGETS,
    TEXTS,
    command_line,
    flags,
    mounted,
)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, scalar) for every scalar in parsed YAML."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, value


def test_ray_always_requires_a_token() -> None:
    with_ray = {
        name
        for name, service in SERVICES.items()
        if "ray" in command_line(service) or "ray start" in " ".join(command_line(service))
    }
    assert with_ray == {"ray-head", "relevance"}
    for name in with_ray:
        assert SERVICES[name]["environment"] == {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray-token",
        }
    assert all(cluster["authOptions"] == {"mode": "token"} for cluster in CLUSTERS.values())
    assert re.search(r"^ENV .*\bRAY_AUTH_MODE=token\b", STAGES["runtime"], re.M)


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "ray-head": ["127.0.0.1:8265:8265"]}
    assert not {"network_mode", "privileged"} & {path[-1] for path, _ in leaves(SERVICES)}
    assert SERVICES["postgres"]["networks"] == ["database"] and COMPOSE["networks"]["database"] == {
        "internal": True
    }
    assert not {"hostPort", "hostNetwork", "serviceType", "enableIngress"} & {
        path[-1] for path, _ in leaves(RAY)
    }


def test_mlflow_requires_an_account_and_allows_the_config_s_host() -> None:
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


def test_no_secret_is_in_a_file_or_an_environment() -> None:
    for where, text in TEXTS.items():
        assert not re.search(r"\b(?<!@sha256:)[0-9a-fA-F]{32,}\b|PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@", text), (
            where
        )
        for name, value in re.findall(
            r"\b([A-Z_]*(?:PASSWORD|TOKEN|SECRET|KEY)[A-Z_]*)\s*[:=]\s*(\S+)", text
        ):
            is_path = value.startswith(("/run/secrets/", "infra/secrets/", "~/", '"$$(cat'))
            assert is_path, f"{where}: {name}"
        for name, value in re.findall(r"^\s*(\w*password\w*)\s*[:=]\s*(\S+)", text, re.M):
            assert value == "{file:", f"{where}: {name}"
    assert "Secret" not in {o["kind"] for o in OBJECTS.values()}
    # pods get secrets as files; KubeRay itself sets RAY_AUTH_*
    assert not [path for path, _ in leaves(RAY) if {"env", "envFrom"} & set(path)]
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())
    assert TEXTS[".gitignore"].split() == ["/secrets/"]


@pytest.mark.parametrize("pod", PODS)
def test_password_file_is_readable_by_its_user_only(pod: dict[str, Any]) -> None:
    assert mounted(pod, "/home/relevance/.mlflow") == {
        "secret": {"secretName": "mlflow-credentials", "defaultMode": 0o400}
    }


@pytest.mark.parametrize("pod", [*PODS, *SUBMITTERS])
def test_pod_is_unprivileged_and_under_the_network_policy(pod: dict[str, Any]) -> None:
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
