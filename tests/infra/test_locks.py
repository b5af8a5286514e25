"""Locks: they fit pyproject.toml and each other, and everything is installed by them."""

import re
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.infra_files import PYPROJECT, TEXTS
from tests.support.pinned_versions import LOCKS, normalized_name, read_lock
from tests.support.places import ROOT, read_readmes

FLAVOURS = ("torch-cpu", "torch-cuda")
# locks that hold a group of pyproject.toml; "torch" is in a lock of each flavour
LOCKS_OF = {name: (name,) for name in PYPROJECT["dependency-groups"]} | {"torch": FLAVOURS}


@pytest.mark.parametrize(
    "line",
    [
        "ray==2.60.0\n",
        "ray==2.60.0 \\\n    --hash=md5:0123\n",
        f"ray>=2.60.0 \\\n    --hash=sha256:{'0' * 64}\n",
        f"ray @ https://example.org/ray.whl \\\n    --hash=sha256:{'0' * 64}\n",
        "--extra-index-url https://example.org/simple\n",
    ],
)
def test_lock_holds_only_versions_with_hashes(line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(line)
    with pytest.raises(ValueError, match="bad.txt"):
        read_lock(path)


def test_locks_satisfy_every_requirement_of_pyproject() -> None:
    needed = [
        *((line, ("libraries",)) for line in PYPROJECT["project"]["dependencies"]),
        *((line, ("build",)) for line in PYPROJECT["build-system"]["requires"]),
        *(
            (line, LOCKS_OF[group])
            for group, lines in PYPROJECT["dependency-groups"].items()
            for line in lines
        ),
    ]
    offenders = []
    for line, locks in needed:
        requirement = Requirement(line)
        name = normalized_name(requirement.name)
        for lock in FLAVOURS if name == "torch" else locks:
            package = LOCKS[lock].get(name)
            if package is None or package.version not in requirement.specifier:
                offenders.append(f"{lock}.txt: {package and package.version} is not {line}; run make lock")
    assert not offenders, "\n".join(offenders)


# the last release with a security fault that is known, of each package that has one
LAST_WITH_A_FAULT = {
    "deepspeed": "0.15.0",
    "filelock": "3.20.2",
    "jinja2": "3.1.5",
    "mlflow": "3.17.1",
    "pyarrow": "23.0.0",
    "ray": "2.59.0",
    "setuptools": "82.0.1",
    "torch": "2.9.1",
    "transformers": "5.9.0",
}


def test_requirements_exclude_releases_with_security_faults() -> None:
    lines = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["build-system"]["requires"]]
    requirements = {normalized_name(Requirement(line).name): Requirement(line) for line in lines}
    accepted = [
        f"{requirements[name]} accepts {version}"
        for name, version in LAST_WITH_A_FAULT.items()
        if version in requirements[name].specifier
    ]
    assert not accepted


def test_locks_agree_on_every_package() -> None:
    entries = defaultdict(set)
    for name, lock in LOCKS.items():
        for package, entry in lock.items():
            if package != "torch":
                entries[package].add(entry)
            assert entry.hashes, f"{name}.txt: {package}"
    assert not {package: found for package, found in entries.items() if len(found) > 1}
    cpu, cuda = (LOCKS[name]["torch"] for name in FLAVOURS)
    assert cpu.version == f"{cuda.version}+cpu" and not cpu.hashes & cuda.hashes


def test_cpu_locks_hold_no_cuda_package() -> None:
    cuda = re.compile("cuda|nvidia|triton")
    for name in ("libraries", "torch-cpu", "mlflow-server", "test"):
        assert not [package for package in LOCKS[name] if cuda.match(package)], name


def test_libraries_lock_is_closed_under_dependencies() -> None:
    packages = LOCKS["libraries"] | LOCKS["torch-cpu"]
    waiting = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    seen, missing = set(), []
    while waiting:
        requirement = waiting.pop()
        name = normalized_name(requirement.name)
        if name not in packages or packages[name].version not in requirement.specifier:
            missing.append(str(requirement))
        for extra in {"", *requirement.extras}:
            if name in packages and (name, extra) not in seen:
                seen.add((name, extra))
                lines = [Requirement(line) for line in metadata.requires(name) or ()]
                waiting += [r for r in lines if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert not missing, "\n".join(missing)


def install_calls() -> list[tuple[str, str]]:
    """Return every call of pip that installs or builds, with its file."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    settings = dict(re.findall(r"^(\w+) :?= (.*)", makefile, re.M)) | {"TORCH": "cuda"}
    for _ in settings:
        makefile = re.sub(r"\$\((\w+)\)", lambda found: settings.get(found[1], found[0]), makefile)
    rules = "\n".join(line for line in makefile.splitlines() if line.startswith("\t"))
    texts = {"Makefile": rules, "Dockerfile": TEXTS["Dockerfile"]}
    texts |= read_readmes()
    pip = re.compile(r"\bpip (?:[-\w]+ )*(?:install|wheel) [^`\n|]*")
    return [(file, call) for file, text in texts.items() for call in pip.findall(text)]


def test_everything_is_installed_by_hash_and_without_dependencies() -> None:
    own = re.compile(
        r"--editable \.$|--no-build-isolation --wheel-dir \S+ \.$|/wheel/\*\.whl$|\.whl#sha256=<\S+ sha256>.$"
    )
    offenders, used = [], set()
    for file, call in install_calls():
        locks = re.findall(r"-r infra/locks/([\w-]+)\.txt", call)
        used.update(locks)
        by_hash = locks and "--require-hashes" in call and "--only-binary :all:" in call
        if "--no-deps" not in call or not (by_hash or own.search(call.strip())):
            offenders.append(f"{file}: {call}")
    assert not offenders, "\n".join(offenders)
    assert used | {"torch-cpu"} == LOCKS.keys()


def test_builds_take_the_installed_setuptools() -> None:
    builds = [
        call
        for _, call in install_calls()
        if "--no-binary" in call or "editable" in call or "wheel-dir" in call
    ]
    assert len(builds) > 4
    assert not [call for call in builds if "--no-build-isolation" not in call]
    # the later option wins for deepspeed
    assert not [call for call in builds if re.search("--no-binary.*--only-binary", call)]
