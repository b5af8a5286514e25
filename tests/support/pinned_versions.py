"""Versions of packages in constraints.txt, with which the tests run."""

from tests.support.places import ROOT


def pinned_version(package: str) -> str:
    """Return the version of `package` in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().split()
    versions = dict(line.split("==") for line in lines if "==" in line)
    return versions[package]
