"""Locks of infra/locks/: the packages that are installed, with versions and hashes."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT

LOCKS_DIR = ROOT / "infra" / "locks"


@dataclass(frozen=True)
class LockedPackage:
    """An entry of a lock."""

    version: str
    hashes: frozenset[str]  # as "sha256:<hex digits>"


def normalized_name(package: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def read_lock(path: Path) -> dict[str, LockedPackage]:
    """Return the packages of a lock by normalized name.

    Raises:
        ValueError: A line is no comment and no package with one version and hashes alone.
    """
    packages = {}
    for line in re.sub(r" \\\n +", " ", path.read_text()).splitlines():
        if not line or line.lstrip().startswith("#"):
            continue
        entry = re.fullmatch(r"([\w.-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line)
        if entry is None:
            raise ValueError(f"{path.name}: {line}")
        hashes = frozenset(entry[3].replace("--hash=", "").split())
        packages[normalized_name(entry[1])] = LockedPackage(entry[2], hashes)
    return packages


LOCKS = {path.stem: read_lock(path) for path in sorted(LOCKS_DIR.glob("*.txt"))}


def pinned_version(package: str) -> str:
    """Return the version of `package` in the locks; of torch, that without the suffix of its flavour."""
    (version,) = {lock[package].version.partition("+")[0] for lock in LOCKS.values() if package in lock}
    return version
