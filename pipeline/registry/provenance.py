"""Software and machine that a training runs on."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from models.files import file_sha256, parse_json
from pipeline.storage.filesystem import json_sha256

DISTRIBUTION = "ads-relevance"

PACKAGES = ("jobs", "models", "pipeline", "validation")

NOT_INSTALLED = {".md", ".pyc"}  # suffixes of files that a wheel does not have

LIBRARIES = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "deepspeed",
    "ray",
    "pyarrow",
    "mlflow",
    "great-expectations",
    "safetensors",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Return versions and platform in the JSON form that is logged with a run."""
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def code_version() -> str:
    """Return the package's version, and the commit if it runs from a checkout."""
    version, root = importlib.metadata.version(DISTRIBUTION), Path(__file__).parents[2]
    if not (root / ".git").exists():
        return version
    describe = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return f"{version}+{describe.stdout.strip()}" if describe.returncode == 0 else version


@functools.cache
def package_sha256() -> str:
    """Return a digest of the files of the package that runs; equal for a checkout and its wheel."""
    root = Path(__file__).parents[2]
    paths = [path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file()]
    return json_sha256(
        {
            path.relative_to(root).as_posix(): file_sha256(path)
            for path in paths
            if path.suffix not in NOT_INSTALLED
        }
    )


def wheel_sha256() -> str | None:
    """Return the sha256 of the wheel that was installed; None if pip did not record one.

    pip records it for a wheel that is named by path or URL:
    https://packaging.python.org/en/latest/specifications/direct-url
    """
    text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    origin = parse_json(text) if text else {}
    sha256: str | None = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    return sha256


def pinned_requirements(extras: Collection[str] = ()) -> list[str]:
    """Return the packages that this one requires, each as name==version.

    The package itself is not among them: it is on no public index, where anybody could claim its name.

    Args:
        extras: Optional dependencies to include, such as "quantized".
    """
    pins = []
    for requirement in importlib.metadata.requires(DISTRIBUTION) or ():
        extra = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        name = re.match(r"([A-Za-z0-9._-]+)(\[.*?\])?", requirement)
        assert name is not None, requirement
        if extra is None or extra[1] in extras:
            # a local version, such as 2.13.0+cpu, is on no public index
            pins.append(f"{name[0]}=={importlib.metadata.version(name[1]).partition('+')[0]}")
    return pins
