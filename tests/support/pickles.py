"""Pickles that show that they were read."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path


class _CreatesFolder:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def pickle_that_creates(folder: Path) -> bytes:
    """Return a pickle that creates `folder` when it is unpickled."""
    return pickle.dumps(_CreatesFolder(folder))
