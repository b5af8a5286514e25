"""Software and machine that a training runs on."""

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
    version, root = importlib.metadata.version("ads-relevance"), Path(__file__).parents[2]
    if not (root / ".git").exists():
        return version
    describe = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return f"{version}+{describe.stdout.strip()}" if describe.returncode == 0 else version
