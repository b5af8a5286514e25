"""The software and the machine that something is made with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = (
    "ads-relevance",
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
    """The software and the machine that a training was started from."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        **machine,
        "libraries": versions,
    }


def code_version() -> str:
    """The package's version and, where it runs from a checkout, the commit."""
    version, root = importlib.metadata.version("ads-relevance"), Path(__file__).parents[2]
    if not (root / ".git").exists():
        return version
    asked = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return f"{version}+{asked.stdout.strip()}" if asked.returncode == 0 else version
