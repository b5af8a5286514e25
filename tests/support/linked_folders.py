"""A folder of a run that its user has replaced by a link to a folder with other content."""

import os
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError

LONG_AGO_S = 30 * 24 * 3600.0


def link_away(folder: Path, below: str = "") -> Path:
    """Make `folder` a link to a new folder, and return an old file there that nobody may delete.

    Args:
        folder: Its parent is created.
        below: The file's folder, relative to the target.
    """
    target = folder.parent.parent / f"precious-{folder.name}"
    kept = target / below / "keep" / "file"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    old_s = time.time() - LONG_AGO_S
    os.utime(kept.parent, (old_s, old_s))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target)
    return kept


def refuses_link() -> pytest.RaisesExc[ConfigError]:
    """Expect the refusal of a linked folder."""
    return pytest.raises(ConfigError, match="is a symbolic link, and links inside .* are not followed")
