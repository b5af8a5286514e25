"""Configs of trunks and copies of their folders."""

import shutil
from pathlib import Path
from typing import Any

from models.config import BackboneConfig


def config_of(source: Path | str, cache_dir: Path | str = "unused", dtype: Any = "float32") -> BackboneConfig:
    """Return the config of a trunk at `source`."""
    return BackboneConfig(source=str(source), cache_dir=str(cache_dir), dtype=dtype)


def copy_of(folder: Path, target: Path) -> Path:
    """Copy a folder; return the copy."""
    return Path(shutil.copytree(folder, target))
