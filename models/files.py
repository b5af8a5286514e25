"""SHA-256 digests and durable writes of files."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """While inside, errors of the system say of which file they are: a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write, whose content is on the disk when it is left."""
    with naming_file(path), path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with synced(path) as file:
        file.write(content)


def bytes_sha256(content: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(content).hexdigest()
